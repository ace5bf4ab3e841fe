// Ask, stream, stop, answer again, copy, share; refused and tried again; one connection for all.

import assert from "node:assert/strict";
import { ask, chatBody, lastAnswer, messages, ready, Service, sleep, until, visit, Wire } from "./harness.js";

export async function chat({ browser, address, service }) {
  const page = await visit(browser, address);
  const settings = { max_tokens: 60, seed: 7 };
  await ask(page, "Hello", { model: "chat", ...settings });
  const grows = page.locator(".message.theirs .said");
  await until("a first text", async () => (await grows.textContent()).length > 5);
  assert.match(await page.locator("#state").textContent(), /chat|idle|running/);
  const answer = await lastAnswer(page);
  const expected = await service.uninterrupted(chatBody("chat", "Hello", settings));
  assert.equal(answer.text, expected.choices[0].text);
  assert.match(answer.foot, /^Cut at the longest length · 60 tokens · [\d.]+ tokens\/s · first after \d+/);

  await ask(page, "Go on", { max_tokens: 5000 });
  await until("a running answer", async () => (await page.locator(".message.theirs").last().locator(".said").textContent()).length > 5);
  await page.click("#send");
  const stopped = await lastAnswer(page);
  assert.equal(stopped.state, "stopped");
  assert.match(stopped.foot, /^Stopped · \d+ tokens/);
  assert.ok(stopped.text.length < 400);

  await page.fill("#chat-settings-max_tokens", "30");
  await page.locator(".message.theirs").last().locator("[aria-label='Answer again']").click();
  await until("a new answer", async () => /30 tokens/.test(await page.locator(".message.theirs").last().locator(".figures").textContent()));
  assert.equal((await messages(page)).length, 4);

  await page.fill("#chat-settings-system", "Be brief & kind");
  await page.click("#share");
  // The link is copied first, which takes its time.
  await until("a link", async () => page.url().includes("#chat?"));
  const link = page.url();
  assert.match(link, /#chat\?model=chat&system=Be\+brief\+%26\+kind&max_tokens=30&seed=7/);
  const other = await visit(browser, link);
  assert.equal(await other.inputValue("#chat-settings-system"), "Be brief & kind");
  assert.equal(await other.inputValue("#chat-settings-seed"), "7");
  assert.deepEqual([...page.complaints, ...other.complaints], []);
  await page.context().close();
  await other.context().close();
  return "asked, streamed, stopped, answered again, shared";
}

export async function refused({ browser, binary }) {
  const service = await new Service(binary, ["--batch-size", "1", "--max-queued-requests", "0"]).start();
  const page = await visit(browser, service.address);
  const body = { model: "chat", prompt: "x", max_tokens: 5000, detach: true };
  const response = await fetch(`${service.address}/api/v1/requests`, { method: "POST", body: JSON.stringify(body) });
  const { id } = await response.json();
  await ask(page, "Hello", { model: "chat", max_tokens: 20 });
  const view = page.locator(".message.theirs").last();
  await until("a refusal", async () => (await view.getAttribute("data-state")) === "refused");
  assert.match(await view.locator(".figures").textContent(), /queue is full.*You can (come back in \d|try again now)/);
  await view.getByText("Keep trying for me").click();
  await until("patience", async () => /Trying again/.test(await view.locator(".figures").textContent()));
  await fetch(`${service.address}/api/v1/requests/${id}`, { method: "DELETE" });
  const answer = await lastAnswer(page);
  assert.equal(answer.state, "done");
  assert.equal(answer.text.length, 20);
  assert.deepEqual(page.complaints, []);
  await page.context().close();
  await service.end();
  return "told when to come back, tried again, taken";
}

export async function oneConnection({ browser, service }) {
  const wire = await new Wire(service).open();
  const page = await visit(browser, wire.address);
  let open = 0;
  let most = 0;
  const count = (change) => (request) => {
    if (!request.url().includes("/api/v1/events")) return;
    open += change;
    most = Math.max(most, open);
  };
  page.on("request", count(1));
  page.on("requestfinished", count(-1));
  page.on("requestfailed", count(-1));
  await ask(page, "Hello", { model: "chat", max_tokens: 300, seed: 1 });
  await page.click("#tab-images");
  // Long enough for all ten to be under way at once, also on a busy machine.
  await page.fill("#image-settings-steps", "120");
  await page.fill("#image-settings-width", "64");
  await page.fill("#image-settings-height", "64");
  for (let job = 0; job < 9; job += 1) {
    await page.fill("#image-prompt", `picture ${job}`);
    await page.click("#draw");
  }
  await until("ten jobs", async () => (await page.locator('.job[data-state="running"]').count()) === 9);
  assert.equal(open, 1, "one open stream for ten jobs");
  // Opening it anew may overlap with the end of the old one.
  assert.ok(most <= 2, `${most} streams at once`);
  await until("all pictures", async () => (await page.locator('.job[data-state="done"]').count()) === 9, 120_000);
  await page.click("#tab-chat");
  assert.equal((await lastAnswer(page)).text.length, 300);
  assert.deepEqual(page.complaints, []);
  await page.context().close();
  wire.close();
  return "ten jobs, one connection";
}

/** The server is started anew between two requests; a request that was running then is told as lost, and can be repeated. */
export async function restart({ browser, binary }) {
  const service = await new Service(binary, ["--drain-timeout-ms", "200"]).start();
  const page = await visit(browser, service.address);
  const settings = { max_tokens: 40, seed: 3 };
  await ask(page, "One", { model: "chat", ...settings });
  const first = await lastAnswer(page);
  await service.stop();
  await service.start();
  await ask(page, "Two");
  const second = await lastAnswer(page);
  assert.equal(second.state, "done");
  const conversation = [
    { role: "user", content: "One" },
    { role: "assistant", content: first.text },
    { role: "user", content: "Two" },
  ];
  const expected = await service.uninterrupted({ model: "chat", messages: conversation, ...settings });
  assert.equal(second.text, expected.choices[0].text);
  await page.reload();
  await ready(page);
  const shown = await page.locator(".message.theirs .said").allTextContents();
  // Markdown has no blanks around a paragraph.
  assert.deepEqual(shown.map((text) => text.trim()), [first.text.trim(), second.text.trim()]);

  // One that runs when the server ends.
  await page.fill("#chat-settings-max_tokens", "5000");
  await ask(page, "Three");
  await sleep(1_000);
  await service.stop();
  await service.start();
  const lost = await lastAnswer(page);
  assert.equal(lost.state, "failed");
  assert.match(lost.foot, /stopped|restarted|restart/);
  assert.ok(lost.text.length > 5, "what had come stays");
  await page.fill("#chat-settings-max_tokens", "10");
  await page.locator(".message.theirs").last().locator("[aria-label='Answer again']").click();
  await until("a new answer", async () => /10 tokens/.test(await page.locator(".message.theirs").last().locator(".figures").textContent()));
  assert.deepEqual(page.complaints, []);
  await page.context().close();
  await service.end();
  return "texts before and after equal those of uninterrupted runs";
}

/** A service that is slow to say what it serves: nothing breaks meanwhile, and what was typed stays. */
export async function slowStart({ browser, service }) {
  const context = await browser.newContext();
  const page = await context.newPage();
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.route("**/api/v1/models", async (route) => {
    await sleep(2_500);
    await route.continue();
  });
  await page.goto(service.address);
  await page.evaluate(() => {
    document.getElementById("prompt").value = "Early";
    document.getElementById("composer-form").requestSubmit();
  });
  await ready(page);
  assert.equal(await page.inputValue("#prompt"), "Early");
  await ask(page, "Hello", { max_tokens: 20 });
  assert.equal((await lastAnswer(page)).state, "done");
  assert.deepEqual(complaints, []);
  await context.close();
  return "nothing lost in 2.5 s without models";
}
