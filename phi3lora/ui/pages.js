// What the pages need beyond Gradio: following runs without a reload, and one cheap question.
window.phi3lora = {
  looks: [],  // what is done after every change of the page
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
  // Do something with what a click brings, as soon as it is drawn: on a slow machine seconds later.
  whenDrawn(selector, act, tries = 600) {
    const found = document.querySelector(selector);
    if (found?.getClientRects().length) act(found);
    else if (tries) setTimeout(() => this.whenDrawn(selector, act, tries - 1), 50);
  },
  focus(selector) {
    this.whenDrawn(selector, (field) => field.focus());
  },
  // Save the file that was just made. Gradio's button for it is drawn after its script has come.
  save(selector) {
    this.whenDrawn(selector, (button) => button.click());
  },
  // Show the chosen run in the address, so that a refresh and a shared link find it again. What a
  // page chose by itself replaces the address: the way back leads to where one came from.
  remember(name, value, chosen = true) {
    const address = new URL(window.location.href);
    if (value) address.searchParams.set(name, value);
    else address.searchParams.delete(name);
    if (address.href === window.location.href) return;
    if (chosen) window.history.pushState({}, "", address);
    else window.history.replaceState({}, "", address);
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

// Which of the two schemes is shown: the system's, until somebody chooses here.
window.phi3lora.scheme = {
  chosen() {
    try {
      return localStorage.getItem("phi3lora-scheme");
    } catch {
      return null;
    }
  },
  isDark: () => document.body.classList.contains("dark"),
  apply() {
    const wanted = this.chosen();
    if (wanted && this.isDark() !== (wanted === "dark")) {
      document.body.classList.toggle("dark", wanted === "dark");
    }
    document.querySelectorAll("#scheme").forEach((button) => {
      const words = this.isDark() ? "Light colours" : "Dark colours";
      if (button.getAttribute("aria-label") === words) return;
      button.setAttribute("aria-label", words);
      button.title = words;
    });
  },
  toggle() {
    try {
      localStorage.setItem("phi3lora-scheme", this.isDark() ? "light" : "dark");
    } catch {
      document.body.classList.toggle("dark");
    }
    this.apply();
  },
};

// What Gradio leaves out for keyboards and screen readers, put in as elements appear.
window.phi3lora.reach = {
  // Radios of one question are one group: one Tab stop, arrow keys within.
  radios(fieldset) {
    fieldset.querySelectorAll("input[type=radio]").forEach((radio) => {
      if (radio.name !== fieldset.id) radio.name = fieldset.id;
    });
  },
  // Folds say whether they are open.
  fold(button) {
    const open = String(button.classList.contains("open"));
    if (button.getAttribute("aria-expanded") !== open) button.setAttribute("aria-expanded", open);
  },
  // A description that stands under a field belongs to it.
  described(info) {
    const field = info.parentElement?.querySelector("input, textarea, select");
    if (!field || info.id) return;
    info.id = (info.closest(".block")?.id || "field") + "-help";
    field.setAttribute("aria-describedby", info.id);
  },
  // The bar leaves as much room at its end as the account takes, in every language and for every name.
  account() {
    const button = document.querySelector(".account:not([data-measured])");
    if (!button) return;
    button.dataset.measured = "yes";
    new ResizeObserver(() => {
      document.documentElement.style.setProperty("--account", `${button.offsetWidth}px`);
    }).observe(button);
  },
  all() {
    this.account();
    document.querySelectorAll("fieldset.block[id]").forEach((one) => this.radios(one));
    document.querySelectorAll("button.label-wrap").forEach((one) => this.fold(one));
    document.querySelectorAll(".info-text:not([id])").forEach((one) => this.described(one));
    document.querySelectorAll(".placeholder-content[role=complementary]").forEach((one) => {
      one.removeAttribute("role");  // two landmarks of one name, and nothing in them
    });
    document.querySelectorAll(".toast-wrap:not([aria-live])").forEach((one) => {
      one.setAttribute("aria-live", "polite");
    });
  },
};

// A list that stays open after its field was left covers the form: Gradio closes it on Escape.
document.addEventListener("focusout", (event) => {
  const field = event.target;
  if (!(field instanceof HTMLInputElement) || field.getAttribute("role") !== "combobox") return;
  setTimeout(() => {
    if (document.activeElement === field || !document.hasFocus()) return;
    if (!document.getElementById(field.getAttribute("aria-controls"))) return;
    const now = document.activeElement;
    field.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    if (now instanceof HTMLElement && document.activeElement !== now) now.focus();
  }, 120);
});

document.addEventListener("click", (event) => {
  const target = event.target instanceof Element ? event.target : null;
  if (!target || target.closest(".toast-wrap")) return;
  if (target.closest("#scheme")) window.phi3lora.scheme.toggle();
  if (target.closest("a[href^='#']")) {
    const place = document.querySelector(target.closest("a").getAttribute("href"));
    if (place) {
      event.preventDefault();
      const field = place.querySelector("textarea");
      if (!field && !place.hasAttribute("tabindex")) place.setAttribute("tabindex", "-1");
      (target.closest(".skip") && field ? field : place).focus();
      place.scrollIntoView({ block: "nearest" });
    }
  }
  if (target.closest("button")) window.phi3lora.quiet();
});
// What was said about the last action is over with the next: a click, a choice, or Enter.
window.phi3lora.quiet = () => {
  document.querySelectorAll(".toast-wrap .toast-close").forEach((close) => close.click());
};
document.addEventListener("change", (event) => {
  if (event.target.matches("[type=radio], [type=checkbox]")) window.phi3lora.quiet();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches("input, textarea")) window.phi3lora.quiet();
});

window.phi3lora.watch = () => {
  let asked = false;
  const look = () => {
    asked = false;
    window.phi3lora.scheme.apply();
    window.phi3lora.reach.all();
    window.phi3lora.looks.forEach((look) => look());
  };
  const soon = () => {
    if (!asked) requestAnimationFrame(look);
    asked = true;
  };
  new MutationObserver(soon).observe(document.documentElement, {
    childList: true,
    subtree: true,
    attributes: true,
    attributeFilter: ["class"],
  });
  look();
};
if (document.readyState === "loading") {
  document.addEventListener("DOMContentLoaded", window.phi3lora.watch);
} else {
  window.phi3lora.watch();
}
