// Three reloads, twelve seconds asleep and twelve without a network, while a text and a picture are made: both are
// complete and equal to what an uninterrupted run makes.

import assert from "node:assert/strict";
import { ask, chatBody, lastAnswer, pictureBytes, ready, sleep, until, visit, Wire } from "./harness.js";

const AWAY_MS = 12_000;

export async function interruptions({ browser, service }) {
  const wire = await new Wire(service).open();
  const page = await visit(browser, wire.address);
  const settings = { max_tokens: 2000, seed: 11 };
  const picture = { width: 64, height: 64, steps: 140, seed: 5 };
  // Forty tokens a second and five steps a second: fifty seconds of text, thirty of picture.
  await ask(page, "Tell me everything", { model: "chat", ...settings });
  await page.click("#tab-images");
  for (const [name, value] of Object.entries(picture)) await page.fill(`#image-settings-${name}`, String(value));
  await page.fill("#image-prompt", "a fox");
  await page.click("#draw");
  await until("a preview", async () => (await page.locator(".frame img[src^='data:']").count()) === 1);

  const shown = async () => (await page.locator(".message.theirs .said").textContent()).length;
  const lengths = [];
  for (let reload = 0; reload < 3; reload += 1) {
    await sleep(1_500);
    lengths.push(await shown());
    await page.reload();
    await ready(page);
    assert.ok((await shown()) >= lengths.at(-1) - 40, "what had come is there at once");
  }
  assert.ok((await page.locator(".frame img[src^='data:']").count()) === 1, "so is the preview");

  // Frozen: no script runs, as in a tab that the browser has put to sleep.
  const browserSide = await page.context().newCDPSession(page);
  await page.evaluate(() => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => true });
    document.dispatchEvent(new Event("visibilitychange"));
  });
  await browserSide.send("Page.setWebLifecycleState", { state: "frozen" });
  await sleep(AWAY_MS);
  await browserSide.send("Page.setWebLifecycleState", { state: "active" });
  await page.evaluate(() => {
    delete document.hidden;
    document.dispatchEvent(new Event("visibilitychange"));
  });
  const before = await shown();
  await until("it goes on", async () => (await shown()) > before + 20);

  await page.context().setOffline(true);
  wire.cut();
  await until("it is told", async () => /Offline/.test(await page.locator("#state").textContent()));
  await sleep(AWAY_MS);
  const during = await shown();
  wire.mend();
  await page.context().setOffline(false);
  await until("it goes on", async () => (await shown()) > during + 20);

  const answer = await lastAnswer(page, 90_000);
  const expected = await service.uninterrupted(chatBody("chat", "Tell me everything", settings));
  assert.equal(answer.text, expected.choices[0].text);
  assert.match(answer.foot, /2000 tokens/);

  await until("the picture", async () => (await page.locator(".job[data-state='done'] .frame a[download]").count()) === 1, 60_000);
  const drawn = await service.uninterrupted({ model: "draw", prompt: "a fox", ...picture });
  const file = await fetch(service.address + drawn.images[0].url);
  const whole = Array.from(new Uint8Array(await file.arrayBuffer()));
  assert.deepEqual(await pictureBytes(page), whole);

  // Finished while away shows finished.
  await page.click("#tab-chat");
  await ask(page, "And more", { max_tokens: 100 });
  await sleep(500);
  await page.goto("about:blank");
  await sleep(3_500);
  await page.goto(wire.address);
  await ready(page);
  const away = await lastAnswer(page, 3_000);
  assert.equal(away.state, "done");
  assert.equal(away.text.length, 100);
  assert.deepEqual(page.complaints, []);
  await page.context().close();
  wire.close();
  return `2,000 tokens and ${whole.length} bytes of picture equal over 3 reloads, 12 s asleep, 12 s offline`;
}

/** The short form, for every run: one reload and one cut. */
export async function reload({ browser, service }) {
  const wire = await new Wire(service).open();
  const page = await visit(browser, wire.address);
  const settings = { max_tokens: 160, seed: 2 };
  await ask(page, "Hello", { model: "chat", ...settings });
  await sleep(800);
  await page.reload();
  await ready(page);
  await sleep(500);
  wire.cut();
  await sleep(800);
  wire.mend();
  const answer = await lastAnswer(page);
  const expected = await service.uninterrupted(chatBody("chat", "Hello", settings));
  assert.equal(answer.text, expected.choices[0].text);
  assert.deepEqual(page.complaints, []);
  await page.context().close();
  wire.close();
  return "equal after a reload and a cut";
}
