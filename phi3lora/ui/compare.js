// What the Compare page does beyond Gradio: buttons of turns, conversations kept in this browser,
// and sharing: a link, a picture, Markdown, JSONL.
(() => {
  const phi3lora = window.phi3lora;
  const KEY = "phi3lora-talks";
  const SUBJECTS = ["adapter", "against", "third"]; // of an address, and of a conversation
  const MOST = 12; // conversations that are kept
  const LONGEST = 1_000_000; // characters of one

  // Newest first: texts of JSON, as the server wrote them.
  phi3lora.talks = {
    current: "",
    all() {
      try {
        const kept = JSON.parse(localStorage.getItem(KEY) || "[]");
        return Array.isArray(kept) ? kept.filter((text) => typeof text === "string") : [];
      } catch {
        return [];
      }
    },
    read(text) {
      try {
        return JSON.parse(text);
      } catch {
        return null;
      }
    },
    keep(texts) {
      try {
        localStorage.setItem(KEY, JSON.stringify(texts.slice(0, MOST)));
      } catch {
        // full, or forbidden: the conversation lives in the page alone
      }
    },
    // The newest one of what the address names, or of any.
    newest() {
      const wanted = new URL(window.location.href).searchParams;
      const same = (talk, name) => (talk[name] || "") === (wanted.get(name) || "");
      const fits = (talk) => talk
        && (!wanted.has("adapter") || SUBJECTS.every((name) => same(talk, name)));
      return this.all().find((text) => fits(this.read(text))) || "";
    },
    write(text) {
      this.current = text;
      const talk = this.read(text);
      if (!talk || text.length > LONGEST) return;
      if (talk.turns.length > 1) forgetQuestion();
      const others = this.all().filter((other) => this.read(other)?.id !== talk.id);
      this.keep([text, ...others]);
      const last = () => document.querySelector("#now .turn")?.scrollIntoView({ block: "nearest" });
      setTimeout(last, 100);  // the bar at the bottom would lie over a long conversation's end
    },
    watch(props, watch) {
      watch("value", () => this.write(props.value || ""));
    },
  };

  // What a link asked is asked: a reload goes on with the conversation, and does not ask again.
  function forgetQuestion() {
    const address = new URL(window.location.href);
    if (!address.searchParams.has("q")) return;
    const kept = SUBJECTS.filter((name) => address.searchParams.has(name))
      .map((name) => [name, address.searchParams.get(name)]);
    address.search = new URLSearchParams(kept);
    window.history.replaceState({}, "", address);
  }

  const sectionsOf = (turn) => [...turn.querySelectorAll(".said")];

  phi3lora.turns = (element, trigger) => {
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-do]");
      if (!button) return;
      if (button.dataset.do === "copy") return copy(button);
      const turn = Number(button.closest(".turn")?.dataset.place ?? -1);
      trigger("click", { do: button.dataset.do, of: button.dataset.of || "", turn });
    });
  };

  async function copy(button) {
    await navigator.clipboard.writeText(button.closest(".said").dataset.raw);
    const before = button.innerHTML;
    button.textContent = "✓";
    setTimeout(() => { button.innerHTML = before; }, 1500);
  }

  // What the page shows now, whether it was kept or not.
  const turnsNow = () => [...document.querySelectorAll("#past .turn, #now .turn")].map((turn) => ({
    question: turn.querySelector("header h2").textContent,
    answers: sectionsOf(turn).map((said) => ({
      name: said.getAttribute("aria-label"),
      text: said.dataset.raw,
    })),
  }));

  function link() {
    const here = new URL(window.location.href);
    const talk = phi3lora.talks.read(phi3lora.talks.current);
    const address = new URL(here.pathname, here.origin);
    for (const name of SUBJECTS) {
      const value = here.searchParams.get(name) ?? talk?.[name];
      if (value) address.searchParams.set(name, value);
    }
    const last = talk?.turns.at(-1);
    const question = last?.question || turnsNow().at(-1)?.question;
    if (question) address.searchParams.set("q", question);
    for (const [name, value] of Object.entries(last?.settings || {})) {
      address.searchParams.set(name, value);
    }
    return address.href;
  }

  function markdown() {
    return turnsNow()
      .map((turn) => {
        const answers = turn.answers.map((said) => `**${said.name}**\n\n${said.text}`);
        return `## ${turn.question}\n\n${answers.join("\n\n")}`;
      })
      .join("\n\n") + "\n";
  }

  function jsonl() {
    return turnsNow()
      .map((turn) => {
        const answers = turn.answers.map((said) => [said.name.toLowerCase(), said.text]);
        return JSON.stringify({ prompt: turn.question, ...Object.fromEntries(answers) });
      })
      .join("\n") + "\n";
  }

  function save(blob, name) {
    const anchor = document.createElement("a");
    anchor.href = URL.createObjectURL(blob);
    anchor.download = name;
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
  }

  // Lines of a text that fit a width.
  function wrapped(brush, text, width, most) {
    const lines = [];
    for (const paragraph of text.split("\n")) {
      let line = "";
      for (const word of paragraph.split(/\s+/)) {
        const longer = line ? `${line} ${word}` : word;
        if (line && brush.measureText(longer).width > width) {
          lines.push(line);
          line = word;
        } else line = longer;
      }
      lines.push(line);
    }
    return lines.length > most ? [...lines.slice(0, most - 1), "…"] : lines;
  }

  // The last turn as a picture of 1200 by 630, or higher where the answers are long.
  function image() {
    const turn = turnsNow().at(-1);
    if (!turn) return;
    const style = getComputedStyle(document.querySelector(".gradio-container"));
    const colour = (name) => style.getPropertyValue(name).trim();
    const canvas = document.createElement("canvas");
    const brush = canvas.getContext("2d");
    const [width, edge, line] = [1200, 60, 34];
    const family = style.fontFamily;
    const body = `24px ${family}`;
    const column = turn.answers.length > 1 ? (width - 3 * edge) / 2 : width - 2 * edge;
    brush.font = `600 34px ${family}`;
    const question = wrapped(brush, turn.question, width - 2 * edge, 4);
    brush.font = body;
    const answers = turn.answers.map((said) => wrapped(brush, said.text, column, 30));
    const top = edge + 40 + question.length * 46 + 30;
    const longest = Math.max(...answers.map((lines) => lines.length));
    canvas.width = width;
    canvas.height = Math.max(630, top + 50 + longest * line + edge + 30);
    brush.fillStyle = getComputedStyle(document.body).backgroundColor;
    brush.fillRect(0, 0, canvas.width, canvas.height);
    const text = style.color;
    brush.fillStyle = text;
    brush.font = `600 34px ${family}`;
    question.forEach((words, at) => brush.fillText(words, edge, edge + 40 + at * 46));
    turn.answers.forEach((said, at) => {
      const left = edge + at * (column + edge);
      brush.font = `600 20px ${family}`;
      brush.fillStyle = said.name === "Tuned" ? colour("--primary-500") || text : text;
      brush.fillText(said.name, left, top);
      brush.font = body;
      brush.fillStyle = text;
      answers[at].forEach((words, row) => brush.fillText(words, left, top + 44 + row * line));
    });
    brush.font = `16px ${family}`;
    brush.fillText(document.title, edge, canvas.height - 28);
    canvas.toBlob((blob) => save(blob, "compare.png"));
  }

  // The set of prompts is kept here; its table is saved from what the page shows.
  const SET = "phi3lora-prompts";
  phi3lora.promptSet = (element) => {
    let kept = "";
    try { kept = localStorage.getItem(SET) || ""; } catch { /* forbidden */ }
    // The field comes a moment later than this, and what comes with it would empty it again.
    const restore = (tries = 40) => {
      const field = document.querySelector("#set-prompts textarea");
      if (field && kept && !field.value && field !== document.activeElement) {
        field.value = kept;
        field.dispatchEvent(new Event("input", { bubbles: true }));
      }
      if (tries && !field?.dataset.touched) setTimeout(restore, 50, field ? tries - 1 : tries);
    };
    restore();
    document.addEventListener("input", (event) => {
      if (!event.isTrusted || !event.target.closest?.("#set-prompts")) return;
      event.target.dataset.touched = "";
      try { localStorage.setItem(SET, event.target.value); } catch { /* kept nowhere */ }
    });
    element.addEventListener("click", (event) => {
      const kind = event.target.dataset?.save;
      if (!kind) return;
      const rows = [...element.querySelectorAll("tr")]
        .map((row) => [...row.cells].map((cell) => cell.textContent));
      const text = kind === "csv" ? csvOf(rows) : jsonlOf(rows);
      save(new Blob([text], { type: kind === "csv" ? "text/csv" : "application/jsonl" }), `answers.${kind}`);
    });
  };

  const csvOf = (rows) => rows.map((row) => row.map(phi3lora.cell).join(",")).join("\n") + "\n";

  function jsonlOf([head, ...rows]) {
    const names = head.map((name) => name.toLowerCase());
    const line = (row) => JSON.stringify(Object.fromEntries(row.map((text, at) => [names[at], text])));
    return rows.map(line).join("\n") + "\n";
  }

  phi3lora.share = (element) => {
    window.addEventListener("popstate", () => window.location.reload()); // another adapter's page
    const told = element.querySelector(".shared");
    const tell = (words) => {
      told.textContent = words;
      setTimeout(() => { told.textContent = ""; }, 3000);
    };
    const actions = {
      link: async () => {
        await navigator.clipboard.writeText(link());
        tell("The link is copied.");
      },
      image,
      markdown: () => save(new Blob([markdown()], { type: "text/markdown" }), "compare.md"),
      jsonl: () => save(new Blob([jsonl()], { type: "application/jsonl" }), "compare.jsonl"),
    };
    for (const menu of element.querySelectorAll("details")) {
      menu.addEventListener("keydown", (event) => {
        if (event.key !== "Escape") return;
        menu.open = false;
        menu.querySelector("summary").focus();
      });
      document.addEventListener("click", (event) => {
        if (!menu.contains(event.target)) menu.open = false;
      });
    }
    element.addEventListener("click", (event) => {
      const { share, talk } = event.target.closest("button")?.dataset || {};
      if (share) {
        event.target.closest("details").open = false;
        if (turnsNow().length || share === "link") actions[share]();
        else tell("There is nothing to share yet.");
      }
      if (talk) open(talk);
    });
    const earlier = element.querySelector(".earlier");
    earlier.addEventListener("toggle", () => { if (earlier.open) list(earlier.querySelector("div")); });
  };

  // Earlier conversations of this browser; a click makes one the newest, and opens its page.
  function list(place) {
    const buttons = phi3lora.talks.all().map((text) => phi3lora.talks.read(text)).filter(Boolean)
      .map((talk) => {
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.talk = talk.id;
        button.textContent = talk.turns?.[0]?.question || "";
        return button;
      });
    const nothing = document.createElement("p");
    nothing.textContent = "None in this browser yet.";
    place.replaceChildren(...(buttons.length ? buttons : [nothing]));
  }

  function open(id) {
    const all = phi3lora.talks.all();
    const text = all.find((one) => phi3lora.talks.read(one)?.id === id);
    if (!text) return;
    phi3lora.talks.keep([text, ...all.filter((one) => one !== text)]);
    const address = new URL(window.location.href);
    address.search = "";
    const talk = phi3lora.talks.read(text);
    for (const name of SUBJECTS) if (talk[name]) address.searchParams.set(name, talk[name]);
    window.location.href = address.href;
  }
})();
