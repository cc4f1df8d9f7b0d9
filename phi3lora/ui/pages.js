// What the pages need beyond Gradio: following runs without a reload, and one cheap question.
window.phi3lora = {
  // The fingerprint of what this page shows; unchanged while nothing happened or nobody looks.
  async pulse(seen, run) {
    if (document.hidden) return seen;
    try {
      const answer = await fetch("pulse?run=" + encodeURIComponent(run || ""), {
        cache: "no-store",
      });
      return answer.ok ? await answer.text() : seen;
    } catch {
      return seen;  // the app is restarting; ask again later
    }
  },
  // Show the chosen run in the address, so that a refresh and a shared link find it again.
  remember(name, value) {
    const address = new URL(window.location.href);
    if (value) address.searchParams.set(name, value);
    else address.searchParams.delete(name);
    if (address.href !== window.location.href) window.history.pushState({}, "", address);
  },
};
