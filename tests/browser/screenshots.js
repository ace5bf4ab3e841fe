// Makes the documentation's pictures of the pages:
//
//     node screenshots.js --binary ../../target/release/girandole [--load-seconds 120] [--only chat,images,phone,admin]
//
// The answers are scripted, the pictures are drawn by the bundled model.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ADMIN_KEY, ask, HERE, lastAnswer, launch, Service, sleep, until, visit } from "./harness.js";

const FOLDER = join(HERE, "../../docs/images");
const { values } = parseArgs({ options: { binary: { type: "string" }, "load-seconds": { type: "string", default: "120" }, folder: { type: "string", default: FOLDER }, only: { type: "string", default: "chat,images,phone,admin" } } });
const wanted = (name) => values.only.split(",").includes(name);

async function keep(page, name) {
  const session = await page.context().newCDPSession(page);
  const { data } = await session.send("Page.captureScreenshot", { format: "webp", quality: 88 });
  mkdirSync(values.folder, { recursive: true });
  writeFileSync(join(values.folder, `${name}.webp`), Buffer.from(data, "base64"));
}

/** Traffic that comes and goes, so that the operator's plots have a shape. */
async function load(address, seconds) {
  const end = Date.now() + seconds * 1000;
  for (let turn = 0; Date.now() < end; turn += 1) {
    const crowd = 1 + Math.round(5 * (1 + Math.sin(turn / 6)));
    for (let one = 0; one < crowd; one += 1) {
      const text = { model: "candle", prompt: `question ${turn} ${one}`, max_tokens: 40 + 37 * ((turn * 7 + one) % 9), detach: true };
      await fetch(`${address}/api/v1/requests`, { method: "POST", body: JSON.stringify(text) }).then((answer) => answer.text());
    }
    await sleep(1_500);
  }
}

const browser = await launch();
const service = await new Service(values.binary, ["--batch-size", "8", "--max-queued-requests", "16"], ["candle=candle.toml", "tiny-sd"]).start();

async function chat() {
  const page = await visit(browser, service.address, { viewport: { width: 1200, height: 780 }, colorScheme: "light" });
  await ask(page, "How does a candle burn?", { max_tokens: 408, seed: 1 });
  await lastAnswer(page);
  await page.mouse.move(5, 5);
  await keep(page, "chat-light");
}

async function images() {
  const page = await visit(browser, service.address, { viewport: { width: 1200, height: 780 }, colorScheme: "dark" });
  await page.click("#tab-images");
  const draw = async (prompt, settings) => {
    for (const [name, value] of Object.entries(settings)) await page.fill(`#image-settings-${name}`, String(value));
    await page.fill("#image-prompt", prompt);
    await page.click("#draw");
  };
  await draw("a red circle on a white background", { n: 3, seed: 7 });
  await until("pictures", async () => (await page.locator(".frame a[download]").count()) === 3, 240_000);
  await draw("a blue square on a yellow background", { n: 3, seed: 21 });
  const done = () => page.locator("progress:visible").first().evaluate(({ value, max }) => value / max);
  await until("a good part of the steps", async () => (await done()) > 0.7, 240_000);
  await keep(page, "images-dark");
}

async function phone() {
  for (const theme of ["light", "dark"]) {
    const options = { viewport: { width: 390, height: 780 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true, colorScheme: theme };
    const page = await visit(browser, service.address, options);
    await ask(page, "How does a candle burn?");
    await until("some text", async () => (await page.locator(".message.theirs .said").textContent()).length > 330);
    await keep(page, `phone-${theme}`);
    await page.context().close();
  }
}

async function admin() {
  await load(service.address, Number(values["load-seconds"]));
  const context = await browser.newContext({ viewport: { width: 1200, height: 980 }, colorScheme: "light" });
  const page = await context.newPage();
  await page.goto(`${service.address}/admin`);
  await page.fill("#key", ADMIN_KEY);
  await page.press("#key", "Enter");
  await until("plots", async () => (await page.locator(".plot svg").first().getAttribute("aria-label")) !== null);
  await sleep(500);
  await keep(page, "admin");
}

try {
  for (const [name, make] of Object.entries({ chat, images, phone, admin })) if (wanted(name)) await make();
} finally {
  await browser.close();
  await service.end();
}
