// 4,000 tokens at twenty frames a second in a tab with 300 messages.

import assert from "node:assert/strict";
import { ask, lastAnswer, messages, until, visit } from "./harness.js";

const TOKENS = 4_000;
const MESSAGES = 300;
const SLOW_FRAME_MS = 50;

/** Before the page's own scripts: how long frames take, and when the last text came in and stood on the screen. */
function watch() {
  const seen = { frames: [], heardAt: 0, shownAt: 0, textFrames: 0, on: false };
  window.seen = seen;
  let last = 0;
  const frame = (now) => {
    if (seen.on && last) seen.frames.push(now - last);
    last = now;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  const read = ReadableStreamDefaultReader.prototype.read;
  ReadableStreamDefaultReader.prototype.read = async function (...rest) {
    const result = await read.apply(this, rest);
    if (typeof result.value === "string" && result.value.includes("event: text")) {
      seen.heardAt = performance.timeOrigin + performance.now();
      seen.textFrames += 1;
      seen.on = true;
    }
    if (typeof result.value === "string" && result.value.includes("event: finished")) seen.on = false;
    return result;
  };
}

function watchScreen() {
  const body = document.querySelector(".message:last-child .said");
  new MutationObserver(() => {
    // The mutation happened before this frame was painted; the task after the next frame comes when it has been.
    requestAnimationFrame(() => setTimeout(() => (window.seen.shownAt = performance.timeOrigin + performance.now())));
  }).observe(body, { childList: true, subtree: true, characterData: true });
}

/** Fills the browser's store with a long conversation. */
function fill(count) {
  const text = (place) =>
    place % 2
      ? `## Answer ${place}\n\nCandles give **light** by burning *wax* vapour, which \`lumens\` measure.\n\n- one\n- two\n- three\n\n\`\`\`python\nprint(${place})\n\`\`\`\n\n${"A sentence that goes on for a while. ".repeat(12)}`
      : `Question ${place}: how does a candle burn?`;
  const ids = [];
  for (let place = 0; place < count; place += 1) {
    const id = `message${place}`;
    ids.push(id);
    const message = { id, role: place % 2 ? "assistant" : "user", text: text(place), state: "done", tokens: 200, model: "fast" };
    localStorage.setItem(`girandole.message.${id}`, JSON.stringify(message));
  }
  localStorage.setItem("girandole.conversation.long", JSON.stringify(ids));
  localStorage.setItem("girandole.conversations", JSON.stringify(["long"]));
  sessionStorage.setItem("girandole.conversation", "long");
}

/** Reads the same request beside the page, and says when its last text came. */
async function lastTextAt(address, id) {
  const response = await fetch(`${address}/api/v1/requests/${id}/events`);
  let at = 0;
  let rest = "";
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    const blocks = (rest + chunk).split("\n\n");
    rest = blocks.pop();
    if (blocks.some((block) => block.includes("event: text"))) at = Date.now();
  }
  return at;
}

export async function keepsUp({ browser, address }) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 800 } });
  await context.addInitScript(watch);
  const page = await context.newPage();
  await page.goto(address);
  await page.evaluate(fill, MESSAGES);
  await page.reload();
  await page.waitForSelector("html[data-ready]");
  assert.equal(await page.locator(".message").count(), MESSAGES);
  await ask(page, "Go", { model: "fast", max_tokens: TOKENS, seed: 1 });
  const message = await until("a request", async () => {
    const last = (await messages(page)).at(-1);
    assert.notEqual(last.state, "failed", last.note);
    return last.request && last;
  });
  const reference = lastTextAt(address, message.request);
  await page.evaluate(watchScreen);
  const answer = await lastAnswer(page, 120_000);
  const lastText = await reference;
  assert.equal(answer.state, "done");
  assert.match(answer.foot, /4000 tokens/);
  await until("painted", () => page.evaluate(() => window.seen.shownAt >= window.seen.heardAt));
  const seen = await page.evaluate(() => window.seen);
  const slow = seen.frames.filter((ms) => ms > SLOW_FRAME_MS).length / seen.frames.length;
  const after = seen.shownAt - seen.heardAt;
  const sorted = seen.frames.toSorted((one, other) => one - other);
  const figures = `${seen.frames.length} frames, median ${sorted[sorted.length >> 1].toFixed(0)} ms, ${(100 * slow).toFixed(1)} % over ${SLOW_FRAME_MS} ms, ${seen.textFrames} texts, last on screen ${after.toFixed(0)} ms after the page had it and ${(seen.shownAt - lastText).toFixed(0)} ms after another reader had it`;
  assert.ok(seen.frames.length > 200, figures);
  assert.ok(slow <= 0.25, figures);
  assert.ok(after <= 200 && seen.shownAt - lastText <= 200, figures);
  await context.close();
  return figures;
}
