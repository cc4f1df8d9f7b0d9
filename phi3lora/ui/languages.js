// The words of the page in the language that the server put into `window.phi3loraWords`. Text of
// people and models (conversations, answers, code, tables, titles of runs) is left as it is.
(() => {
  const words = window.phi3loraWords || null;
  const RAW = "pre, code, textarea, td, script, style, svg, option, .message, .data-name, .trains-on b, "
    + ".run-title h1, .run-name, .cm-editor, [data-raw]";
  // Names in braces that stand for a number; the others stand for words.
  const NUMBERS = new Set(["number", "total", "place", "share", "epochs", "rank", "rate", "rows", "tokens"]);
  const ATTRIBUTES = ["placeholder", "aria-label", "title"];
  const made = new WeakMap();  // text node → what was put there

  const escape = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  // `{number} checks passed` as an expression, with the names of its groups in order.
  function compiled([from, to]) {
    const names = [];
    const source = from.split(/\{(\w+)\}/).map((part, place) => {
      if (place % 2 === 0) return escape(part);
      names.push(part);
      return NUMBERS.has(part) ? "([\\d.,]+(?:e-?\\d+)?)" : "(.+?)";
    }).join("");
    return { expression: new RegExp(`^${source}$`, "s"), names, to };
  }
  const patterns = words
    ? Object.entries(words).filter(([from]) => /\{\w+\}/.test(from)).map(compiled)
    : [];

  function line(text) {
    const known = words[text];
    if (known) return known;
    for (const { expression, names, to } of patterns) {
      const found = expression.exec(text);
      if (found) {
        return names.reduce((said, name, place) => {
          const part = found[place + 1];
          return said.replace(`{${name}}`, () => (NUMBERS.has(name) ? part : line(part)));
        }, to);
      }
    }
    return text;
  }
  // A text with the spaces around it; cards are several lines, lines of facts have parts.
  function say(text) {
    const whole = text.trim();
    if (!whole) return text;
    const said = line(whole);
    if (said !== whole) return text.replace(whole, () => said);
    const parts = text.split(/(\n| · )/);
    if (parts.length === 1) return text;
    return parts.map((part) => (part.trim() ? part.replace(part.trim(), () => line(part.trim())) : part)).join("");
  }

  function sayNode(node) {
    if (made.get(node) === node.data || !/\p{L}/u.test(node.data)) return;
    if (node.parentElement?.closest(RAW)) return;
    const said = say(node.data);
    made.set(node, said);
    if (said !== node.data) node.data = said;
  }
  function sayElement(element) {
    for (const name of ATTRIBUTES) {
      const now = element.getAttribute(name);
      const said = now && say(now);
      if (now && said !== now) element.setAttribute(name, said);
    }
  }
  // A help line has `code` between its words, and is one sentence all the same.
  function sayHelp(help) {
    const source = [...help.childNodes]
      .map((node) => (node.nodeName === "CODE" ? "`" + node.textContent + "`" : node.textContent))
      .join("").trim();
    const said = words[source];
    if (!said) return;
    help.replaceChildren(...said.split(/(`[^`]+`)/).filter(Boolean).map((part) => {
      if (!part.startsWith("`")) return part;
      const code = document.createElement("code");
      code.textContent = part.slice(1, -1);
      return code;
    }));
  }
  function sayTree(root) {
    if (root.nodeType === Node.TEXT_NODE) sayNode(root);
    if (root.nodeType !== Node.ELEMENT_NODE) return;
    sayElement(root);
    root.querySelectorAll(".info-text").forEach(sayHelp);
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      if (node.nodeType === Node.TEXT_NODE) sayNode(node);
      else sayElement(node);
    }
  }

  function watch() {
    sayTree(document.body);
    new MutationObserver((changes) => {
      for (const change of changes) {
        if (change.type === "characterData") sayNode(change.target);
        else if (change.type === "attributes") sayElement(change.target);
        else change.addedNodes.forEach(sayTree);
      }
    }).observe(document.body, {
      childList: true, subtree: true, characterData: true,
      attributes: true, attributeFilter: ATTRIBUTES,
    });
  }
  if (words) {
    if (document.body) watch();
    else document.addEventListener("DOMContentLoaded", watch);
  }

  document.addEventListener("change", (event) => {
    if (event.target.id !== "language") return;
    document.cookie = `phi3lora-language=${event.target.value}; path=/; max-age=31536000; samesite=lax`
      + (location.protocol === "https:" ? "; secure" : "");
    location.reload();
  });
  window.phi3lora.say = (text) => (words ? say(text) : text);
  window.phi3lora.looks.push(() => {
    const select = document.getElementById("language");
    const now = window.phi3loraLanguage || "en";
    if (select && select.value !== now) select.value = now;
    if (document.documentElement.lang !== now) document.documentElement.lang = now;
  });
})();
