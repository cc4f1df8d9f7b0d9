// The Train page: steps that fold, the sheet of a small screen, fields that are wrong, the search
// over all options, the pager of conversations, and the configuration as a file.
(() => {
  const root = document.documentElement;
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  let wrong = {};

  function store(name, value) {
    try {
      localStorage.setItem(name, value);
    } catch {
      // a browser that keeps nothing: the page works without
    }
  }

  // ------------------------------------------------------------------ steps

  const folded = () => new Set((root.dataset.folded || "").split(" ").filter(Boolean));
  function fold(step, closed) {
    const now = folded();
    if (closed) now.add(step);
    else now.delete(step);
    root.dataset.folded = [...now].join(" ");
    store("phi3lora-folded", root.dataset.folded);
    steps();
  }
  function steps() {
    const now = folded();
    all(".step-toggle").forEach((button) => {
      const open = String(!now.has(button.dataset.step));
      if (button.getAttribute("aria-expanded") !== open) button.setAttribute("aria-expanded", open);
    });
  }

  // ------------------------------------------------------------------ the first look

  // Until the form is drawn the skeleton shows what will be trained (skeleton.html).
  function firstLook() {
    const skeleton = document.getElementById("skeleton");
    if (skeleton && document.getElementById("findings-fold")) skeleton.remove();
  }

  // ------------------------------------------------------------------ leading to a field

  async function waitFor(find) {
    for (let tries = 0; tries < 120; tries += 1) {
      const found = find();
      if (found) return found;
      await frame();
    }
    return null;
  }
  async function openFold(id) {
    const button = one(`#${CSS.escape(id)} > button.label-wrap`);
    if (button && !button.classList.contains("open")) button.click();
  }
  async function goTo(field, foldId) {
    sheet(false);
    for (const step of all(".step")) {
      if (one(`#${CSS.escape(field)}, #${CSS.escape(foldId || field)}`, step)) fold(step.id, false);
    }
    if (foldId) await openFold(foldId);
    if (foldId === "options") filter("");
    const block = await waitFor(() => document.getElementById(field));
    const input = block && one("input, textarea, select", block);
    if (!input) return;
    block.scrollIntoView({ block: "center" });
    input.focus({ preventScroll: true });
  }

  // ------------------------------------------------------------------ what is wrong

  function mark(problems) {
    try {
      wrong = JSON.parse(problems || "{}");
    } catch {
      wrong = {};
    }
    marks();
  }
  function marks() {
    const folds = new Set(Object.values(wrong).map((one) => one.fold));
    all(".fold[id]").forEach((fold) => fold.classList.toggle("holds-wrong", folds.has(fold.id)));
    all(".step").forEach((step) => {
      const holds = Object.entries(wrong).some(([field, { fold }]) =>
        one(`#${CSS.escape(field)}, #${CSS.escape(fold || field)}`, step));
      step.classList.toggle("holds-wrong", holds);
    });
    all(".block.wrong").filter((block) => !wrong[block.id]).forEach(unmark);
    Object.entries(wrong).forEach(([field, { message }]) => {
      const block = document.getElementById(field);
      if (block) markField(block, message);
    });
  }
  function markField(block, message) {
    const said = one(".field-wrong", block);
    block.classList.add("wrong");
    const input = one("input, textarea", block); // may be another than was marked before
    input?.setAttribute("aria-invalid", "true");
    input?.setAttribute("aria-errormessage", block.id + "-wrong");
    if (said && said.textContent === message) return;
    said?.remove();
    const line = document.createElement("p");
    line.className = "field-wrong";
    line.id = block.id + "-wrong";
    line.textContent = message;
    block.append(line);
  }
  function unmark(block) {
    block.classList.remove("wrong");
    one(".field-wrong", block)?.remove();
    const input = one("input, textarea", block);
    input?.removeAttribute("aria-invalid");
    input?.removeAttribute("aria-errormessage");
  }

  // ------------------------------------------------------------------ rules of thumb

  function rules() {
    const place = document.getElementById("rules");
    if (!place) return;
    Object.entries(JSON.parse(place.dataset.rules)).forEach(([field, [title, rule]]) => {
      const block = document.getElementById(field);
      if (!block || one(".rule", block)) return;
      const said = document.createElement("details");
      const mark = document.createElement("summary");
      const line = document.createElement("p");
      said.className = "rule";
      mark.textContent = "?";
      mark.setAttribute("aria-label", `Rule of thumb: ${title}`);
      line.textContent = rule;
      said.append(mark, line);
      block.append(said);
    });
  }

  // ------------------------------------------------------------------ the search over all options

  function filter(query) {
    const box = document.getElementById("option-search");
    if (box && box.value !== query) box.value = query;
    const words = query.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (text) => words.every((word) => text.includes(word));
    let found = 0;
    all("#options .options .block[id^='field-']").forEach((block) => {
      const text = `${block.id.replace(/[-_]/g, " ")} ${block.id} ${block.textContent}`;
      const fits = matches(text.toLowerCase());
      block.toggleAttribute("data-left-out", !fits);
      if (fits) found += 1;
    });
    all("#options .option-section").forEach((section) => {
      const some = one(".block[id^='field-']:not([data-left-out])", section);
      section.toggleAttribute("data-left-out", !some);
    });
    elsewhere(words.length ? matches : null, found);
  }
  function elsewhere(matches, found) {
    const place = document.getElementById("option-elsewhere");
    const said = document.getElementById("option-found");
    if (!place || !said) return;
    const fields = JSON.parse(place.dataset.options);
    const others = matches ? fields.filter((field) => matches(field.words)) : [];
    place.replaceChildren(...others.map((field) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "fix";
      button.textContent = field.title;
      button.dataset.goto = field.field;
      button.dataset.fold = field.fold;
      return button;
    }));
    const { found: some = "", one: single = "", none = "" } = said.dataset;
    const number = found + others.length;
    const text = number > 1 ? some : number ? single : none;
    said.textContent = matches ? text.replace("{number}", number) : "";
  }

  // ------------------------------------------------------------------ the sheet of a small screen

  function sheet(open) {
    document.getElementById("launch-panel")?.classList.toggle("open", open);
    sheetState();
  }
  function sheetState() {
    const open = String(!!one("#launch-panel.open"));
    const button = one(".sheet-toggle");
    if (button && button.getAttribute("aria-expanded") !== open) {
      button.setAttribute("aria-expanded", open);
    }
  }

  // ------------------------------------------------------------------ conversations, one at a time

  function turn(figure, by) {
    const cards = all("pre:not(.tokens)", figure);
    const now = cards.findIndex((card) => !card.hidden);
    const next = (now + by + cards.length) % cards.length;
    cards.forEach((card, place) => { card.hidden = place !== next; });
    const place = one(".place", figure);
    place.textContent = place.dataset.words.replace("{place}", next + 1);
    drawTokens(figure);
  }
  function showAs(figure, name) {
    figure.dataset.as = name;
    all("button.as", figure).forEach((button) => {
      button.setAttribute("aria-pressed", String(button.dataset.as === name));
    });
    drawTokens(figure);
  }
  // Hundreds of tokens a conversation: only those that are looked at are drawn.
  function drawTokens(figure) {
    const block = one(".tokens", figure);
    block.hidden = figure.dataset.as !== "tokens";
    if (block.hidden) return;
    const now = all("pre:not(.tokens)", figure).findIndex((card) => !card.hidden);
    block.replaceChildren(...(JSON.parse(block.dataset.tokens)[now] || []).flatMap(([text, learnt]) => {
      const token = document.createElement("i");
      token.textContent = text.replace(/\n/g, "↵");
      if (learnt) {
        token.className = "learnt";
        token.title = window.phi3lora.say("learnt");
      }
      return text.includes("\n") ? [token, "\n"] : [token];
    }));
  }

  // ------------------------------------------------------------------ rows that were changed

  // The lists of what was found are as they were; what was done since is said beside their rows.
  function rowMarks() {
    const place = one("#row-changes .row-changes");
    const of = (name) => new Set((place?.dataset[name] || "").split(" "));
    const edited = of("edited");
    const out = of("out");
    all("#findings .row-do").forEach((cell) => {
      const [open, leave] = all("button", cell);
      if (!cell.dataset.said) {  // the words of a table are people's, and not translated
        cell.dataset.said = "yes";
        [open, leave].forEach((button) => { button.textContent = window.phi3lora.say(button.textContent); });
      }
      const now = out.has(open.dataset.row) ? "use-again" : "leave-out";
      cell.classList.toggle("edited", edited.has(open.dataset.row));
      cell.classList.toggle("out", now === "use-again");
      if (leave.dataset.open === now) return;
      leave.dataset.open = now;
      leave.textContent = window.phi3lora.say(now === "use-again" ? "Use again" : "Leave out");
    });
  }
  async function toRow() {
    const box = await waitFor(() => one("#row-editor textarea"));
    one("#row-editor")?.scrollIntoView({ block: "nearest" });
    box?.focus({ preventScroll: true });
  }

  // ------------------------------------------------------------------ the configuration as a file

  function save(text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/yaml" }));
    link.download = "phi3lora.yaml";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  function load(text) {
    const input = document.createElement("input");
    input.type = "file";
    input.accept = ".yaml,.yml,.json";
    return new Promise((done) => {
      input.addEventListener("cancel", () => done(text));
      input.addEventListener("change", async () => {
        const file = input.files[0];
        done(file && file.size < 200_000 ? await file.text() : text);
      });
      input.click();
    });
  }

  document.addEventListener("click", (event) => {
    const target = event.target instanceof Element ? event.target : null;
    const at = (selector) => target?.closest(selector);
    const toggle = at(".step-toggle");
    if (toggle) fold(toggle.dataset.step, !folded().has(toggle.dataset.step));
    else if (at(".step-line")) fold(at(".step").id, false);
    const next = at(".step-next");
    if (next) {
      fold(next.dataset.step, true);
      fold(next.dataset.then, false);
      const head = one(`#${next.dataset.then} .step-toggle`);
      head?.focus({ preventScroll: true });
      head?.scrollIntoView({ block: "start" });
    }
    const field = at("[data-goto]");
    if (field) goTo(field.dataset.goto, field.dataset.fold);
    const as = at("button.as");
    if (as) showAs(as.closest("figure"), as.dataset.as);
    const pager = at("[data-turn]");
    if (pager) turn(pager.closest("figure"), Number(pager.dataset.turn));
    if (at(".sheet-toggle")) sheet(!one("#launch-panel.open"));
    else if (one("#launch-panel.open") && !at("#launch-panel")) sheet(false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && one("#launch-panel.open")) {
      sheet(false);
      one(".sheet-toggle")?.focus();
    }
  });
  document.addEventListener("input", (event) => {
    if (event.target.id === "option-search") filter(event.target.value);
  });

  window.phi3lora.train = {
    mark, save, load, toRow,
    launched: () => store("phi3lora-launched", "yes"),
  };
  window.phi3lora.looks.push(firstLook, steps, rules, marks, sheetState, rowMarks);
})();
