// Markdown as models write it, made into DOM nodes and never into markup: what a model says can only ever
// be text in elements from this file.
//
// While text comes in, only its last block is made anew, and of that only what differs is changed.

import { h } from "./dom.js";

/** Lists in quotes in lists: deeper than this is shown as plain text. */
const MAX_DEPTH = 12;

const FENCE = /^(\s*)(`{3,}|~{3,})\s*([^`\s]*)/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** Shows a growing text. */
export class MarkdownView {
  #root;
  /** What is not shown for good yet: the open block, with what the next append adds. */
  #open = "";
  /** How many of the root's nodes are shown for good. */
  #closed = 0;

  /** @param {HTMLElement} root an empty element */
  constructor(root) {
    this.#root = root;
  }

  /** @param {string} text to be appended */
  append(text) {
    this.#open += text;
    const end = lastBreak(this.#open);
    if (end > 0) {
      const done = document.createDocumentFragment();
      done.append(...blocks(this.#open.slice(0, end).split("\n"), 0));
      const count = done.childNodes.length;
      patch(this.#root, done, this.#closed);
      this.#closed += count;
      this.#open = this.#open.slice(end);
    }
    const fresh = document.createDocumentFragment();
    fresh.append(...blocks(this.#open.split("\n"), 0));
    patch(this.#root, fresh, this.#closed);
  }
}

/**
 * The same for a whole text.
 * @param {string} text
 */
export function render(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.split("\n"), 0));
  return fragment;
}

/**
 * Where the last block begins that may still change: behind a blank line that is in no code and in no list. 0 if
 * it is the first.
 */
function lastBreak(text) {
  let end = 0;
  let at = 0;
  let fence = null;
  let inList = false;
  let blank = false;
  for (const line of text.split("\n")) {
    const isLast = at + line.length >= text.length;
    const mark = FENCE.exec(line);
    if (fence) {
      if (mark && mark[2].startsWith(fence) && !mark[3]) fence = null;
      blank = false;
    } else if (!line.trim()) {
      blank = true;
    } else {
      const item = ITEM.test(line);
      const goesOn = inList && (item || /^\s/.test(line));
      // A line that is still growing may yet become an item.
      if (blank && !goesOn && !(inList && isLast)) {
        end = at;
        inList = false;
      }
      inList ||= item;
      if (mark) fence = mark[2];
      blank = false;
    }
    at += line.length + 1;
  }
  return end;
}

/**
 * The blocks of some lines.
 * @param {string[]} lines
 * @param {number} depth
 * @returns {Node[]}
 */
function blocks(lines, depth) {
  if (depth > MAX_DEPTH) return [h("p", { text: lines.join("\n") })];
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (!line.trim()) {
      at += 1;
    } else if (fence) {
      const [code, next] = fenced(lines, at, fence);
      nodes.push(code);
      at = next;
    } else if (heading) {
      // The page has a heading of its own above.
      const level = Math.min(6, heading[1].length + 2);
      nodes.push(h(`h${level}`, {}, ...inline(heading[2])));
      at += 1;
    } else if (RULE.test(line)) {
      nodes.push(h("hr"));
      at += 1;
    } else if (QUOTE.test(line)) {
      let end = at;
      while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || !startsBlock(lines, end))) end += 1;
      const inner = lines.slice(at, end).map((quoted) => quoted.replace(QUOTE, ""));
      nodes.push(h("blockquote", {}, ...blocks(inner, depth + 1)));
      at = end;
    } else if (ITEM.test(line)) {
      const [list, next] = listed(lines, at, depth);
      nodes.push(list);
      at = next;
    } else if (isTable(lines, at)) {
      const [table, next] = tabled(lines, at);
      nodes.push(table);
      at = next;
    } else {
      let end = at + 1;
      while (end < lines.length && lines[end].trim() && !startsBlock(lines, end)) end += 1;
      const text = lines.slice(at, end).map((part) => part.trim()).join("\n");
      nodes.push(h("p", {}, ...inline(text)));
      at = end;
    }
  }
  return nodes;
}

function startsBlock(lines, at) {
  const line = lines[at];
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line) || isTable(lines, at);
}

function fenced(lines, at, [, indent, fence, language]) {
  const own = [];
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const close = FENCE.exec(lines[end]);
    if (close && close[2].startsWith(fence) && !close[3]) break;
    own.push(lines[end].startsWith(indent) ? lines[end].slice(indent.length) : lines[end].trimStart());
  }
  const head = h("div", { class: "code-head" }, h("span", { text: language || "text" }), h("button", { type: "button", class: "quiet", "data-copy": "code", text: "Copy" }));
  // A block that can be scrolled must be reachable without a pointer.
  const code = h("pre", { tabindex: "0", role: "group", "aria-label": "Code" }, h("code", { text: own.join("\n") }));
  return [h("div", { class: "code" }, head, code), end + 1];
}

function listed(lines, at, depth) {
  const [, indent, marker] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(marker);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || item[1].length > indent.length + 3 || /\d/.test(item[2]) !== ordered || RULE.test(lines[end])) break;
    const width = item[0].length > item[1].length + item[2].length + 4 ? item[1].length + item[2].length + 1 : item[0].length;
    const own = [lines[end].slice(width)];
    end += 1;
    while (end < lines.length) {
      const line = lines[end];
      const depthOf = line.length - line.trimStart().length;
      const next = ITEM.exec(line);
      const afterBlank = !lines[end - 1].trim();
      if (line.trim() && ((next && depthOf < width) || (afterBlank && depthOf < Math.min(width, 2)))) break;
      if (line.trim() && depthOf < width && startsBlock(lines, end)) break;
      own.push(line.slice(Math.min(width, depthOf)));
      end += 1;
    }
    items.push(own);
  }
  const loose = items.some((own) => own.slice(0, -1).some((line, place) => !line.trim() && /^\S/.test(own[place + 1])));
  const nodes = items.map((own) => {
    const task = /^\[([ xX])\]\s+/.exec(own[0]);
    if (task) own[0] = (task[1] === " " ? "\u2610 " : "\u2611 ") + own[0].slice(task[0].length);
    const inner = blocks(own, depth + 1);
    if (!loose && inner[0]?.nodeName === "P") inner.splice(0, 1, ...inner[0].childNodes);
    return h("li", {}, ...inner);
  });
  const start = Number.parseInt(marker, 10);
  return [h(ordered ? "ol" : "ul", ordered && start !== 1 ? { start } : {}, ...nodes), end];
}

function isTable(lines, at) {
  return at + 1 < lines.length && lines[at].includes("|") && lines[at + 1].includes("-") && TABLE_RULE.test(lines[at + 1]);
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function tabled(lines, at) {
  const sides = cells(lines[at + 1]).map((cell) => `${cell.startsWith(":") ? "l" : ""}${cell.endsWith(":") ? "r" : ""}`);
  const side = (place) => ({ lr: "center", r: "right" })[sides[place]] ?? null;
  const row = (line, kind) =>
    h("tr", {}, ...cells(line).slice(0, sides.length).map((cell, place) => h(kind, { class: side(place) }, ...inline(cell))));
  const head = h("thead", {}, row(lines[at], "th"));
  const body = h("tbody");
  let end = at + 2;
  for (; end < lines.length && lines[end].includes("|") && lines[end].trim(); end += 1) body.append(row(lines[end], "td"));
  return [h("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" }, h("table", {}, head, body)), end];
}

const WRAPS = [
  ["***", (inner) => h("strong", {}, h("em", {}, ...inner))],
  ["**", (inner) => h("strong", {}, ...inner)],
  ["__", (inner) => h("strong", {}, ...inner)],
  ["~~", (inner) => h("s", {}, ...inner)],
  ["*", (inner) => h("em", {}, ...inner)],
  ["_", (inner) => h("em", {}, ...inner)],
];
const SPECIAL = /[\\`*_~[!<\n]|https?:\/\//g;

/**
 * What stands within a line: emphasis, code, links.
 * @param {string} text
 * @returns {(Node|string)[]}
 */
function inline(text, depth = 0) {
  if (depth > MAX_DEPTH) return [text];
  const nodes = [];
  /** Marks that are not closed behind this point need not be looked for again. */
  const open = new Set();
  let plain = 0;
  let at = 0;
  const put = (node, next) => {
    if (at > plain) nodes.push(text.slice(plain, at));
    nodes.push(node);
    at = plain = next;
  };
  for (;;) {
    SPECIAL.lastIndex = at;
    const found = SPECIAL.exec(text);
    if (!found) break;
    at = found.index;
    const made = special(text, at, found[0], open, depth);
    if (made) put(...made);
    else at += /^[*_~`]$/.test(found[0]) ? runLength(text, at) : 1;
  }
  if (plain < text.length) nodes.push(text.slice(plain));
  return nodes;
}

const runLength = (text, at) => {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
};

/** The node that begins at `at`, and where it ends; `null` if the character stands for itself. */
function special(text, at, character, open, depth) {
  switch (character) {
    case "\\":
      return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? [text[at + 1], at + 2] : null;
    case "\n":
      return [h("br"), at + 1];
    case "`":
      return codeSpan(text, at, open);
    case "!":
    case "[":
      return link(text, at, open, depth);
    case "<": {
      const auto = /^<((?:https?:\/\/|mailto:)[^\s<>]+)>/.exec(text.slice(at, at + 2048));
      return auto ? anchor(auto[1], [auto[1]], at + auto[0].length) : null;
    }
    case "http://":
    case "https://": {
      const bare = /^[^\s<>"'`]+/.exec(text.slice(at, at + 2048))[0].replace(/[.,;:!?)*_\]]+$/, "");
      return bare.length > character.length ? anchor(bare, [bare], at + bare.length) : null;
    }
    default:
      return emphasis(text, at, open, depth);
  }
}

function codeSpan(text, at, open) {
  const ticks = "`".repeat(runLength(text, at));
  if (open.has(ticks)) return null;
  let end = at + ticks.length;
  for (;;) {
    end = text.indexOf(ticks, end);
    if (end < 0) {
      open.add(ticks);
      return null;
    }
    const run = runLength(text, end);
    if (run === ticks.length) break;
    end += run;
  }
  const code = text.slice(at + ticks.length, end).replaceAll("\n", " ");
  const padded = code.startsWith(" ") && code.endsWith(" ") && code.trim();
  return [h("code", { text: padded ? code.slice(1, -1) : code }), end + ticks.length];
}

function emphasis(text, at, open, depth) {
  const inWord = text[at] === "_" && /[\p{L}\p{N}]/u.test(text[at - 1] ?? "");
  if (inWord) return null;
  for (const [mark, wrap] of WRAPS) {
    if (!text.startsWith(mark, at) || open.has(mark) || !/\S/.test(text[at + mark.length] ?? " ")) continue;
    let end = at + mark.length;
    for (;;) {
      end = text.indexOf(mark, end + 1);
      if (end < 0) {
        open.add(mark);
        break;
      }
      const run = runLength(text, end);
      const closes = /\S/.test(text[end - 1]) && (mark[0] !== "_" || !/[\p{L}\p{N}]/u.test(text[end + run] ?? ""));
      // A longer run closes what is inside first: the last of its characters are ours.
      if (closes && (run === mark.length || run > 2)) {
        const close = end + run - mark.length;
        return [wrap(inline(text.slice(at + mark.length, close), depth + 1)), close + mark.length];
      }
      end += run - 1;
    }
  }
  return null;
}

/** `[text](address)`. Pictures are shown as links: nothing is loaded from elsewhere. */
function link(text, at, open, depth) {
  const start = text[at] === "!" ? at + 1 : at;
  if (text[start] !== "[" || open.has("](")) return null;
  const middle = text.indexOf("](", start);
  if (middle < 0) {
    open.add("](");
    return null;
  }
  const label = text.slice(start + 1, middle);
  const rest = /^\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*")?\s*\)/.exec(text.slice(middle, middle + 2048));
  if (!rest || label.includes("[") || label.includes("\n\n")) return null;
  return anchor(rest[1], inline(label || rest[1], depth + 1), middle + rest[0].length);
}

/** A link, if its address is one that cannot do anything but lead somewhere. */
function anchor(address, children, end) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  return [h("a", { href: url.href, rel: "noopener noreferrer nofollow", target: "_blank" }, ...children), end];
}

/**
 * Makes the nodes of `parent` from number `from` on like those of `fresh`, changing as little as possible: growing
 * text is appended to its node, so what somebody has selected stays so.
 */
function patch(parent, fresh, from = 0) {
  let old = parent.childNodes[from] ?? null;
  let next = fresh.firstChild;
  while (next) {
    const following = next.nextSibling;
    if (!old) {
      parent.append(next);
    } else if (!isAlike(old, next)) {
      const replaced = old;
      old = old.nextSibling;
      replaced.replaceWith(next);
    } else {
      if (old.nodeType !== Node.TEXT_NODE) patch(old, next);
      else if (next.data.startsWith(old.data)) {
        if (next.data.length > old.data.length) old.appendData(next.data.slice(old.data.length));
      } else old.data = next.data;
      old = old.nextSibling;
    }
    next = following;
  }
  while (old) {
    const left = old;
    old = old.nextSibling;
    left.remove();
  }
}

function isAlike(one, other) {
  if (one.nodeName !== other.nodeName) return false;
  if (one.nodeType === Node.TEXT_NODE) return true;
  if (one.attributes.length !== other.attributes.length) return false;
  for (const { name, value } of other.attributes) if (one.getAttribute(name) !== value) return false;
  return true;
}
