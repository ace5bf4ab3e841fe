// The page's Markdown: what it makes of a text, the same however the text comes in, and never markup.

import assert from "node:assert/strict";
import { until, visit } from "./harness.js";

const SAMPLE = `# Title

Some *emphasis*, **strong**, ***both***, ~~gone~~, \`code\` and snake_case_words, 2 * 3 * 4.
A second line, [a link](https://example.org/a_(b) "title"), https://example.org/x?y=1. End.

- one
- two
  - nested *deep*
  - more

    with a paragraph
- three

1. first
2. second

   \`\`\`rust
   fn main() {}
   \`\`\`

> quoted **text**
> goes on

| a | b |
| --- | ---: |
| 1 | \\| |
| x | **y** |

---

\`\`\`js
const x = "<b>not markup</b>";

// still code
\`\`\`

Last _paragraph_ with \\*escaped\\* stars.`;

const HOSTILE = `<img src=x onerror="window.pwned=1"> <script>window.pwned=1</script>

[click](javascript:window.pwned=1) [data](data:text/html,x) ![pic](https://example.org/p.png) <javascript:alert(1)>

<a href="javascript:window.pwned=1">x</a>

| <b>a</b> | b |
|---|---|
| <img src=x onerror=alert(1)> | [x](vbscript:y) |

\`\`\`"><script>window.pwned=1</script>
x
\`\`\``;

export async function markdown({ browser, address }) {
  const page = await visit(browser, address);
  const made = await page.evaluate(
    async ([sample, hostile]) => {
      const app = document.querySelector('script[type="module"]').src;
      const { MarkdownView, render } = await import(app.replace("app.js", "markdown.js"));
      const show = (pieces) => {
        const root = document.createElement("div");
        const view = new MarkdownView(root);
        for (const piece of pieces) view.append(piece);
        return root;
      };
      const html = (root) => new XMLSerializer().serializeToString(root);
      const plain = (text) => {
        const root = document.createElement("div");
        root.append(render(text));
        return root;
      };
      const whole = plain(sample);
      const differing = [];
      let seed = 1;
      for (let round = 0; round < 60; round += 1) {
        const pieces = [];
        for (let at = 0; at < sample.length; ) {
          seed = (seed * 48271) % 2147483647;
          const length = 1 + (seed % (round % 2 ? 7 : 60));
          pieces.push(sample.slice(at, at + length));
          at += length;
        }
        whole.normalize();
        const root = show(pieces);
        root.normalize();
        if (!root.isEqualNode(whole)) differing.push(html(root));
      }
      const bad = plain(hostile);
      document.body.append(bad);
      const tags = [...new Set([...bad.querySelectorAll("*")].map((element) => element.localName))].sort();
      const links = [...bad.querySelectorAll("[href],[src]")].map((element) => element.getAttribute("href") ?? element.getAttribute("src"));
      const began = performance.now();
      for (const evil of ["*a ".repeat(6000), "**a".repeat(6000), "[a](".repeat(4000), "`".repeat(9000), "> ".repeat(8000), "- ".repeat(8000), "_a".repeat(8000)]) plain(evil);
      const evilMs = performance.now() - began;
      return { html: html(whole), differing, tags, links, pwned: window.pwned, evilMs };
    },
    [SAMPLE, HOSTILE],
  );
  for (const wanted of [
    "<h3>Title</h3>",
    "<em>emphasis</em>",
    "<strong>strong</strong>",
    "<strong><em>both</em></strong>",
    "<s>gone</s>",
    "snake_case_words, 2 * 3 * 4",
    'href="https://example.org/a_(b)"',
    'href="https://example.org/x?y=1"',
    'rel="noopener noreferrer nofollow"',
    "<li>two<ul><li><p>nested <em>deep</em></p></li>",
    "fn main() {}",
    "<blockquote><p>quoted <strong>text</strong>",
    '<td class="right">|</td>',
    "<hr",
    "&lt;b&gt;not markup&lt;/b&gt;",
    "*escaped* stars",
  ]) {
    assert.ok(made.html.includes(wanted), `${wanted} is not in ${made.html}`);
  }
  assert.deepEqual(made.differing, [], "a text that comes in pieces looks as one that comes at once");
  for (const tag of ["img", "script", "b"]) assert.ok(!made.tags.includes(tag), `${tag} in ${made.tags}`);
  assert.deepEqual(made.links, ["https://example.org/p.png"]);
  assert.equal(made.pwned, undefined);
  assert.ok(made.evilMs < 4_000, `${made.evilMs} ms for texts meant to be slow`);
  assert.deepEqual(page.complaints, []);
  await page.context().close();
  return `60 ways of cutting, equal; hostile texts in ${made.evilMs.toFixed(0)} ms`;
}
