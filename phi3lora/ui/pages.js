// What the pages need beyond Gradio: following runs without a reload, and one cheap question.
window.phi3lora = {
  ticks: 0,
  changed: 0,
  asked: 0,

  // The fingerprint of what this page shows; unchanged while nothing happened or nobody looks.
  // Where nothing has changed for half a minute, two of three questions are left out. A page that
  // nobody looks at asks now and then for a run that goes on: its end is told.
  async pulse(seen, run) {
    this.ticks += 1;
    const rests = this.ticks - this.changed > 15 && this.ticks % 3;
    const awaits = document.querySelector(".run-title")?.matches(
      "[data-status=queued], [data-status=running], [data-status=stopping]",
    );
    if (document.hidden ? !awaits || Date.now() - this.asked < 10_000 : rests) return seen;
    this.asked = Date.now();
    try {
      const answer = await fetch("pulse?run=" + encodeURIComponent(run || ""), {
        cache: "no-store",
      });
      const now = answer.ok ? await answer.text() : seen;
      if (now !== seen) this.changed = this.ticks;
      return now;
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

  // The form of the Train page as this browser keeps it. An address that names a run is obeyed
  // once: after that the form is the draft, and a reload keeps what was changed.
  kept() {
    try {
      return localStorage.getItem("phi3lora-draft") || "";
    } catch {
      return "";  // a browser that keeps nothing
    }
  },
  keep(names, values) {
    const draft = Object.fromEntries(names.map((name, place) => [name, values[place]]));
    try {
      localStorage.setItem("phi3lora-draft", JSON.stringify(draft));
    } catch {
      // full, or forbidden: the form works without
    }
    const address = new URL(window.location.href);
    address.searchParams.delete("from");
    address.searchParams.delete("further");
    if (address.href !== window.location.href) window.history.replaceState({}, "", address);
  },
  forget() {
    try {
      localStorage.removeItem("phi3lora-draft");
    } catch {
      // there was nothing
    }
    window.location.href = "./";
  },
};
