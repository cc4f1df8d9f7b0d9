// The words of the page in the language that the server put into `window.phi3loraWords`. Text of
// people and models (conversations, answers, code, tables, titles of runs) is left as it is.
(() => {
  const words = window.phi3loraWords || null;
  const RAW = "pre, code, textarea, td, script, style, svg, option, .message, .data-name, .trains-on b, "
    + ".run-title h1, .run-name, .run-item b, .cm-editor, .said .prose, .prose-card, .turn h2, .pair, .asked, .sample p, "
    + "[data-prompt], [data-raw=text]";
  // Names in braces that stand for a number; the others stand for words.
  const NUMBERS = new Set(["number", "total", "place", "share", "epochs", "rank", "rate", "rows", "tokens"]);
  const ATTRIBUTES = ["placeholder", "aria-label", "title"];
  const LABELS = ["data-of"];  // of a cell, where a phone shows a table without its head
  const INLINE = new Set(["A", "B", "STRONG", "Q", "CODE"]);
  const LEAST = 4;  // letters by which a pattern is known, whatever is filled in
  const MOST = 5000;  // texts that are remembered
  const made = new WeakMap();  // text node → what was put there
  const known = new Map();  // text → what it is here

  const escape = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  // `{number} checks passed` as an expression, with the names of its groups in order.
  function compiled([from, to]) {
    const names = [];
    const source = from.split(/\{(\w+)\}/).map((part, place) => {
      if (place % 2 === 0) return escape(part);
      names.push(part);
      return NUMBERS.has(part) ? "([\\d.,]+(?:e-?\\d+)?)" : "(.*?)";
    }).join("");
    const own = from.replace(/\{\w+\}|[^\p{L}]/gu, "").length;
    return { expression: new RegExp(`^${source}$`, "s"), names, to, own };
  }
  // The one with the most words of its own first: it says the most about a text.
  const patterns = Object.entries(words || {}).filter(([from]) => /\{\w+\}/.test(from)).map(compiled)
    .sort((one, other) => other.own - one.own);

  function line(text) {
    if (!words || !/\p{L}/u.test(text)) return text;
    if (!known.has(text)) {
      if (known.size > MOST) known.clear();
      known.set(text, words[text] || filled(text) || parts(text));
    }
    return known.get(text);
  }
  // A text with something filled in, whose words are said, too.
  function filled(text) {
    for (const { expression, names, to, own } of patterns) {
      const found = expression.exec(text);
      if (!found) continue;
      const inner = found.slice(1).map((part, place) => (NUMBERS.has(names[place]) ? part : within(part)));
      // `{1} on {2}` says nothing by itself: whatever it is filled with has to be known.
      const strange = (part, place) => part === found[place + 1] && /\p{L}/u.test(part);
      if (own < LEAST && inner.some(strange)) continue;
      return names.reduce((said, name, place) => said.replace(`{${name}}`, () => inner[place]), to);
    }
    return "";
  }
  // A part of a sentence, with the space and the comma before it.
  function within(text) {
    const whole = words[text.trim()];
    if (whole) return text.replace(text.trim(), () => whole);
    const [, before, body, after] = /^([\s,;]*)(.*?)(\s*)$/s.exec(text);
    return before + line(body) + after;
  }
  // Some sentences are known together: the longest run of them comes first.
  function runs(sentences) {
    const said = [];
    for (let start = 0, end; start < sentences.length; start = end) {
      end = sentences.length;
      while (end > start + 1 && !words[sentences.slice(start, end).join(" ")]) end -= 1;
      said.push(line(sentences.slice(start, end).join(" ")));
    }
    return said.join(" ");
  }
  // A text of several sentences, or `Title: message`; each part is said that is known.
  function parts(text) {
    const sentences = text.split(/(?<=[.!?…]) (?=\p{Lu})/u);
    if (sentences.length > 1) return runs(sentences);
    const title = /^([^:]{1,40}): (.+)$/s.exec(text);
    if (title && words[title[1]]) return `${words[title[1]]}: ${line(title[2])}`;
    const advice = text.split(/(; |, (?=or ))/);  // `lower this; set that`
    return advice.length > 1 ? advice.map(line).join("") : text;
  }
  // A text with the spaces around it; cards are several lines, lines of facts have parts.
  function say(text) {
    const whole = text.trim(), inOne = whole.replace(/\s+/g, " ");
    if (!whole) return text;
    if (words[inOne]) return text.replace(whole, () => words[inOne]);
    return text.split(/(\n| · )/).map((part) => part.replace(part.trim(), (one) => line(one))).join("");
  }

  function sayNode(node) {
    if (made.get(node) === node.data || !/\p{L}/u.test(node.data)) return;
    const parent = node.parentElement;
    const ours = ".prose summary, pre :is(.spoken, .cut, .ours), [data-say], [data-say] option";
    if (parent?.closest(RAW) && !parent.matches(ours)) return;
    const said = say(node.data);
    made.set(node, said);
    if (said !== node.data) node.data = said;
  }
  // One sentence around links, code or bold words is said as one, and they keep their places in it.
  const marked = (node, text) => (node.nodeName === "CODE" ? "`" + text + "`" : text);
  function sayInline(element) {
    const inner = [...element.children];
    if (!inner.length || inner.length > 4 || element.closest(RAW) || /svelte-/.test(element.className)) return;
    if (!inner.every((one) => INLINE.has(one.tagName) && !one.children.length)) return;
    const whole = [...element.childNodes].map((node) => marked(node, node.textContent)).join("").trim();
    let rest = line(whole);
    if (rest === whole) return;
    const nodes = [];
    for (const one of inner) {
      const text = one.textContent;
      const found = [text, line(text)].find((said) => said && rest.includes(marked(one, said)));
      if (!found) return;
      const [before, ...after] = rest.split(marked(one, found));
      one.textContent = found;
      nodes.push(before, one);
      rest = after.join(marked(one, found));
    }
    element.replaceChildren(...[...nodes, rest].filter((node) => node !== ""));
    [element, ...inner].forEach((one) => one.childNodes.forEach((node) => made.set(node, node.data)));
  }
  function sayElement(element) {
    for (const name of element.nodeName === "TD" ? LABELS : ATTRIBUTES) {
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
    root.querySelectorAll(":has(> :is(a, b, strong, q, code))").forEach(sayInline);
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
