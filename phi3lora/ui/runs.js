// What the Runs page does beyond Gradio: menus, tabs with addresses, the list's search and ticks,
// the log, the page's title and a notice when a run ends, and the dialog of Publish.
(() => {
  const phi3lora = window.phi3lora;
  const ACTIVE = ["queued", "running", "stopping"];
  const ENDED = { interrupted: "was interrupted" }; // other words than the status
  const TABS = ["curves", "evidence", "settings", "log"];
  const MOST = 5; // runs beside each other

  // A <details> whose buttons send `data-NAME`s of theirs as a click, and which closes like a menu.
  phi3lora.menu = (element, trigger, ...names) => {
    const menu = () => element.querySelector("details");
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-" + names[0] + "]");
      if (!button || button.disabled) return;
      menu().open = false;
      menu().querySelector("summary").focus();
      trigger("click", Object.fromEntries(names.map((name) => [name, button.dataset[name] || ""])));
    });
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !menu().open) return;
      menu().open = false;
      menu().querySelector("summary").focus();
    });
    element.addEventListener("focusout", (event) => {
      if (event.relatedTarget && !element.contains(event.relatedTarget)) menu().open = false;
    });
    document.addEventListener("click", (event) => {
      if (!element.contains(event.target) && menu()) menu().open = false;
    });
  };

  // A button with `data-sure` asks first: it says what it will do, and does it on the next click.
  phi3lora.sure = (button) => {
    if (!button.dataset.sure || button.textContent === button.dataset.sure) return true;
    const before = button.textContent;
    button.textContent = button.dataset.sure;
    button.addEventListener("blur", () => { button.textContent = before; }, { once: true });
    return false;
  };

  // Tabs by arrow keys; the address ends in the chosen one, `#log`.
  phi3lora.tabs = (element) => {
    const tabs = [...element.querySelectorAll("[role=tab]")];
    const nameOf = (tab) => tab.id.replace("tab-", "");
    const choose = (name) => {
      document.getElementById("run-tabs").dataset.tab = name;
      for (const tab of tabs) {
        const chosen = nameOf(tab) === name;
        tab.setAttribute("aria-selected", chosen);
        tab.tabIndex = chosen ? 0 : -1;
        const panel = document.getElementById(tab.getAttribute("aria-controls"));
        panel?.setAttribute("role", "tabpanel");
        panel?.setAttribute("aria-labelledby", tab.id);
      }
      document.dispatchEvent(new CustomEvent("phi3lora-tab", { detail: name }));
    };
    const fromAddress = () => {
      const name = window.location.hash.slice(1);
      choose(TABS.includes(name) ? name : TABS[0]);
    };
    const press = (tab) => {
      const address = new URL(window.location.href); // a bare "#" would be one of the page's <base>
      address.hash = nameOf(tab);
      window.history.replaceState({}, "", address);
      choose(nameOf(tab));
      tab.focus();
    };
    element.addEventListener("click", (event) => {
      const tab = event.target.closest("[role=tab]");
      if (tab) press(tab);
    });
    element.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) press(tabs[(tabs.indexOf(event.target) + by + tabs.length) % tabs.length]);
    });
    window.addEventListener("hashchange", fromAddress);
    setTimeout(fromAddress); // once the panels are there
  };

  // The run whose end somebody waits for; it outlives the page, so that who comes back is told.
  const awaited = {
    get: () => { try { return localStorage.getItem("phi3lora-awaited"); } catch { return null; } },
    set: (run) => { try { localStorage.setItem("phi3lora-awaited", run); } catch { /* kept nowhere */ } },
  };

  // The page's title follows the run; its end is told to who looks elsewhere, if they allowed it.
  phi3lora.runHead = (element, watch) => {
    let shown = ""; // the run that was here before
    let away = {}; // the run that ended while nobody looked, and how
    const head = () => element.querySelector(".run-title");
    const line = () => {
      if (document.hidden || !head() || away.run !== head().dataset.run) return;
      if (element.querySelector(".while-away")) return;
      const words = document.createElement("p");
      words.className = "while-away";
      words.textContent = `It ${ENDED[away.status] || away.status} while you were away.`;
      head().after(words);
    };
    const told = () => {
      const { run, status, title } = head()?.dataset || {};
      if (!run) return;
      document.title = `${title} · phi3lora`;
      if (ACTIVE.includes(status)) awaited.set(run);
      else if (awaited.get() === run) {
        awaited.set("");
        if (document.hidden || shown !== run) away = { run, status };
        if (document.hidden && window.Notification?.permission === "granted") new Notification(title);
      }
      shown = run;
      line();
    };
    document.addEventListener("visibilitychange", line);
    element.addEventListener("click", (event) => {
      if (event.target.closest("button[name=notify]")) askLeave();
    });
    const mayAsk = () => {
      const may = window.Notification?.permission === "default";
      if (may) element.dataset.mayNotify = "";
      else delete element.dataset.mayNotify;
    };
    const askLeave = () => window.Notification.requestPermission().then(mayAsk);
    mayAsk();
    watch("value", told);
    told();
  };

  // The order of two keys: numbers by their size, others as texts, an empty one last.
  const compared = (one, other) => {
    if (!one || !other) return !one - !other;
    const [a, b] = [Number(one), Number(other)];
    return Number.isNaN(a) || Number.isNaN(b) ? one.localeCompare(other) : a - b;
  };

  // A click on a column's name sorts the rows by it, a second one the other way round.
  phi3lora.sortable = (element) => {
    element.addEventListener("click", (event) => {
      const head = event.target.closest("th button")?.parentElement;
      if (!head) return;
      const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of head.parentElement.cells) {
        if (other.ariaSort) other.ariaSort = other === head ? (way > 0 ? "ascending" : "descending") : "none";
      }
      const body = head.closest("table").tBodies[0];
      const key = (row) => row.cells[head.cellIndex].dataset.key;
      const order = (one, other) => (key(one) && key(other) ? way : 1) * compared(key(one), key(other));
      body.append(...[...body.rows].toSorted(order));
    });
  };

  // Search and ticks are the browser's alone: they outlive each new list from the server.
  phi3lora.runList = (element, trigger, watch) => {
    const ticked = new Set();
    const tools = document.getElementById("run-tools");
    const bar = () => tools.querySelector(".tick-bar");
    const keyOf = (item, by) => (by === "title" ? item.querySelector("b").textContent : item.dataset[by]);
    const newest = new Map(); // place of an item as the server sent it
    const ordered = () => {
      const items = [...element.querySelectorAll(".run-item")];
      items.forEach((item, place) => { if (!newest.has(item)) newest.set(item, place); });
      const by = tools.querySelector("select").value;
      const sorted = items.toSorted((one, other) =>
        (by && compared(keyOf(one, by), keyOf(other, by))) || newest.get(one) - newest.get(other));
      if (sorted.some((item, place) => item !== items[place])) sorted[0].parentElement.append(...sorted);
    };
    const drawn = () => {
      const wanted = tools.querySelector("input").value.trim().toLowerCase();
      for (const item of element.querySelectorAll(".run-item")) {
        item.hidden = !item.textContent.toLowerCase().includes(wanted);
        const box = item.querySelector("input");
        box.checked = ticked.has(box.dataset.tick);
      }
      ordered();
      const items = [...element.querySelectorAll(".run-item")];
      tools.querySelector(".no-match").textContent =
        items.length && items.every((item) => item.hidden) ? "No run matches." : "";
      bar().hidden = ticked.size < 2;
      bar().querySelector("[name=several]").textContent = `Compare ${ticked.size} runs`;
    };
    const ask = (several) => trigger("click", { several });
    element.addEventListener("change", (event) => {
      const run = event.target.dataset?.tick;
      if (!run) return;
      if (event.target.checked && ticked.size < MOST) ticked.add(run);
      else ticked.delete(run);
      drawn();
    });
    element.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-run]");
      if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      trigger("click", { run: link.dataset.run });
    });
    tools.addEventListener("input", drawn);
    tools.addEventListener("click", (event) => {
      if (event.target.name === "several") ask([...ticked]);
      if (event.target.name !== "untick") return;
      ticked.clear();
      drawn();
      ask([]);
    });
    window.addEventListener("popstate", () => {
      trigger("click", { run: new URL(window.location.href).searchParams.get("run") || "" });
    });
    watch("value", () => { newest.clear(); drawn(); });
    drawn();
  };

  // Lines that match are shown; the end is in view unless somebody scrolled away from it.
  phi3lora.log = (element, watch) => {
    const search = element.querySelector("input");
    const said = element.querySelector(".log-tools span");
    let whole = "";
    const drawn = () => {
      const text = element.querySelector("pre");
      if (!text) return;
      const wanted = search.value.toLowerCase();
      const lines = whole.split("\n");
      const found = wanted ? lines.filter((line) => line.toLowerCase().includes(wanted)) : lines;
      text.textContent = found.join("\n");
      said.textContent = wanted ? `${found.length} of ${lines.length} lines` : "";
      text.scrollTop = text.scrollHeight;
    };
    const fresh = () => {
      const text = element.querySelector("pre");
      if (!text) return;
      const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40 || !whole;
      const at = text.scrollTop;
      whole = text.textContent;
      drawn();
      if (!atEnd) text.scrollTop = at;
    };
    search.addEventListener("input", drawn);
    element.querySelector("[name=copy]").addEventListener("click", async (event) => {
      await navigator.clipboard.writeText(whole);
      event.target.textContent = "Copied";
      setTimeout(() => { event.target.textContent = "Copy"; }, 2000);
    });
    document.addEventListener("phi3lora-tab", drawn); // only now it has a height to scroll
    watch("value", fresh);
    fresh();
  };

  const isDrawn = (element) => Boolean(element?.getClientRects().length);

  // A column of Gradio's as a dialog: named, closed by Escape, and the only place Tab goes to.
  phi3lora.dialog = (id, title) => {
    const opener = document.activeElement;
    const ready = () => {
      const card = document.getElementById(id);
      if (!isDrawn(card)) return setTimeout(ready, 50);
      card.setAttribute("role", "dialog");
      card.setAttribute("aria-modal", "true");
      card.setAttribute("aria-label", title);
      card.querySelector("input:not([type=checkbox]), textarea")?.focus();
      card.onkeydown = (event) => keep(event, card);
      const gone = setInterval(() => {
        if (isDrawn(document.getElementById(id))) return;
        clearInterval(gone);
        opener?.focus();
      }, 300);
    };
    ready();
  };

  function keep(event, card) {
    if (event.key === "Escape") card.querySelector("#close-publish")?.click();
    if (event.key !== "Tab") return;
    const all = [...card.querySelectorAll("button, input, textarea, a[href], summary")];
    const open = all.filter((one) => isDrawn(one) && !one.disabled);
    const [first, last] = [open[0], open[open.length - 1]];
    const at = document.activeElement;
    if (event.shiftKey ? at !== first : at !== last) return;
    event.preventDefault();
    (event.shiftKey ? last : first).focus();
  }
})();
