// Files that are dropped on the Train page: one replaces the other, and one that cannot be read is
// refused in words at the place where it was dropped, without taking the good one away.
(() => {
  const field = () => document.getElementById("file");
  const input = () => field()?.querySelector("input[type=file]");

  function kinds() {
    return (document.getElementById("file-kinds")?.dataset.kinds || "").split(" ");
  }
  function readable(file) {
    return kinds().some((kind) => file.name.toLowerCase().endsWith(kind));
  }
  function say(text) {
    const place = document.getElementById("file-refused");
    if (place) place.textContent = text && window.phi3lora.say(text);
  }
  function refused(file) {
    return `${file.name} is no kind of file that rows are read from. Drop JSON, JSONL, CSV, Parquet, Excel or text.`;
  }
  async function put(file) {
    field().querySelector("button[aria-label=Clear]")?.click();
    for (let tries = 0; tries < 120 && !input(); tries += 1) {
      await new Promise((done) => requestAnimationFrame(done));
    }
    if (!input()) return;
    const files = new DataTransfer();
    files.items.add(file);
    input().files = files.files;
    input().dispatchEvent(new Event("change", { bubbles: true }));
  }
  // Before Gradio sees it: it says "Invalid file type" in a corner, with a list of suffixes.
  function check(event, file) {
    if (!file) return;
    const good = readable(file);
    say(good ? "" : refused(file));
    if (good && (event.type !== "drop" || input())) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (good) put(file);
    else if (event.type === "change") event.target.value = "";
  }
  document.addEventListener("dragover", (event) => {
    if (event.target instanceof Element && event.target.closest("#file")) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (event.target instanceof Element && event.target.closest("#file")) {
      event.preventDefault();
      check(event, event.dataTransfer?.files[0]);
    }
  }, true);
  document.addEventListener("change", (event) => {
    if (event.target === input()) check(event, event.target.files[0]);
  }, true);
})();
