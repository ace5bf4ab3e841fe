// Pictures: previews and steps, the gallery, download with metadata, image to image by drop, one that has expired.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { ready, sleep, until, visit } from "./harness.js";

export async function pictures({ browser, address, service }) {
  const page = await visit(browser, address, { acceptDownloads: true });
  await page.click("#tab-images");
  for (const [name, value] of Object.entries({ width: 128, height: 64, steps: 20, n: 2, seed: 41 })) await page.fill(`#image-settings-${name}`, String(value));
  await page.selectOption("#image-settings-schedule", "euler");
  await page.fill("#image-settings-negative_prompt", "blur");
  await page.fill("#image-prompt", "a red fox");
  await page.click("#draw");
  const previews = new Set();
  const steps = new Set();
  await until("both pictures", async () => {
    for (const preview of await page.locator(".frame img").evaluateAll((images) => images.map(({ src }) => src))) if (preview.startsWith("data:")) previews.add(preview);
    const figures = await page.locator(".job .figures").textContent();
    if (figures.startsWith("Step")) steps.add(figures);
    return (await page.locator(".frame a[download]").count()) === 2;
  });
  assert.ok(previews.size > 4, `${previews.size} previews`);
  assert.ok(steps.size > 4, `${[...steps]}`);

  const [download] = await Promise.all([page.waitForEvent("download"), page.locator(".frame a[download]").nth(1).click({ force: true })]);
  const file = readFileSync(await download.path());
  assert.match(download.suggestedFilename(), /-42\.png$/);
  assert.ok(file.includes("parameters") && file.includes("a red fox") && file.includes("Negative prompt: blur") && file.includes("Seed: 42"));
  const expected = await service.uninterrupted({ model: "draw", prompt: "a red fox", negative_prompt: "blur", width: 128, height: 64, steps: 20, n: 2, seed: 41, schedule: "euler" });
  const whole = Buffer.from(await (await fetch(service.address + expected.images[1].url)).arrayBuffer());
  assert.ok(file.equals(whole), "the download is the service's file");

  // Image to image: a dropped file.
  const data = await page.evaluateHandle((bytes) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], "fox.png", { type: "image/png" }));
    return transfer;
  }, Array.from(file));
  await page.dispatchEvent("#drop", "drop", { dataTransfer: data });
  await page.waitForSelector("#source img");
  await page.fill("#strength", "0.5");
  await page.fill("#image-settings-n", "1");
  const [request] = await Promise.all([page.waitForRequest((one) => one.method() === "POST"), page.click("#draw")]);
  const body = request.postDataJSON();
  assert.equal(body.strength, 0.5);
  assert.ok(body.image.startsWith("data:image/png;base64,"));
  await until("the third picture", async () => (await page.locator(".frame a[download]").count()) === 3);
  await until("what it took", async () => /10 steps/.test(await page.locator(".job .figures").first().textContent()));

  // The gallery outlives the page.
  await page.reload();
  await ready(page);
  await until("the gallery", async () => (await page.locator(".frame a[download]").count()) === 3);
  assert.deepEqual(page.complaints, []);
  await page.context().close();
  return `${previews.size} previews, download equal to the service's file, begun from a dropped picture`;
}

export async function expired({ browser, binary, Service }) {
  const service = await new Service(binary, ["--event-retention-s", "0"]).start();
  const page = await visit(browser, service.address);
  await page.click("#tab-images");
  await page.fill("#image-prompt", "a fox");
  await page.fill("#image-settings-steps", "5");
  await page.click("#draw");
  await sleep(200);
  await page.goto("about:blank");
  await sleep(4_000);
  await page.goto(service.address);
  await ready(page);
  const job = page.locator(".job");
  await until("the end", async () => (await job.getAttribute("data-state")) === "failed");
  assert.match(await job.locator(".figures").textContent(), /keeps it no longer/);
  assert.deepEqual(page.complaints, []);
  await page.context().close();
  await service.end();
  return "told that the service keeps it no longer";
}
