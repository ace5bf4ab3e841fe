// What the browser tests stand on: the real program with scripted models, a way to cut its network, Chromium.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const HERE = dirname(fileURLToPath(import.meta.url));
export const ADMIN_KEY = "operator-secret-0123456789";
const MODELS = ["chat=chat.toml", "fast=fast.toml", "draw=draw.toml"];
const CHROMIUM_FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until `done` gives something true, and returns it. */
export async function until(what, done, limitMs = 20_000) {
  const end = Date.now() + limitMs;
  for (;;) {
    const value = await done();
    if (value) return value;
    assert.ok(Date.now() < end, `not within ${limitMs} ms: ${what}`);
    await sleep(50);
  }
}

/** The program, on a port of its own that it keeps when it is started anew. */
export class Service {
  #process = null;
  #ended;
  #folder = mkdtempSync(join(tmpdir(), "girandole-browser-"));
  port = 0;

  constructor(binary, flags = [], models = MODELS) {
    this.binary = binary;
    this.flags = flags;
    this.models = models;
    writeFileSync(join(this.#folder, "admin.keys"), `operator ${ADMIN_KEY}\n`);
  }

  get address() {
    return `http://127.0.0.1:${this.port}`;
  }

  async start() {
    const models = this.models.flatMap((model) => {
      const [name, file] = model.split("=");
      return ["--model", file ? `${name}=scripted:${join(HERE, file)}` : name];
    });
    const flags = ["--port", String(this.port), "--log-level", "warn", "--admin-key-file", join(this.#folder, "admin.keys")];
    this.#process = spawn(this.binary, [...models, ...flags, ...this.flags], { stdio: ["ignore", "pipe", "inherit"] });
    this.#ended = new Promise((resolve) => this.#process.once("exit", resolve));
    const line = await new Promise((resolve, reject) => {
      this.#process.stdout.on("data", (data) => resolve(String(data)));
      this.#process.on("exit", (code) => reject(new Error(`the program ended with ${code}`)));
    });
    this.port = Number(/:(\d+)\s/.exec(line)[1]);
    await until("ready", async () => (await fetch(`${this.address}/health/ready`)).ok);
    return this;
  }

  async stop() {
    this.#process.kill("SIGTERM");
    // A second signal stops at once.
    const timer = setTimeout(() => this.#process.kill("SIGTERM"), 5_000);
    await this.#ended;
    clearTimeout(timer);
  }

  async end() {
    await this.stop();
    rmSync(this.#folder, { recursive: true });
  }

  /** A request read without any interruption: the whole status at its end. */
  async uninterrupted(body) {
    const submit = () => fetch(`${this.address}/api/v1/requests`, { method: "POST", body: JSON.stringify(body) });
    // After a restart, a kept connection is found dead on its next use.
    const response = await submit().catch(submit);
    assert.equal(response.status, 201);
    const { id } = await response.json();
    return until(
      "the end",
      async () => {
        const status = await (await fetch(`${this.address}/api/v1/requests/${id}?wait=30`)).json();
        return status.usage && status;
      },
      120_000,
    );
  }
}

/** Stands between the browser and the service, and can cut them off from each other. */
export class Wire {
  #sockets = new Set();
  #cut = false;

  constructor(service) {
    this.server = net.createServer((near) => {
      if (this.#cut) return void near.destroy();
      const far = net.connect(service.port, "127.0.0.1");
      for (const [one, other] of [
        [near, far],
        [far, near],
      ]) {
        this.#sockets.add(one);
        one.on("error", () => {});
        one.on("close", () => {
          this.#sockets.delete(one);
          other.destroy();
        });
      }
      near.pipe(far);
      far.pipe(near);
    });
  }

  async open() {
    await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    this.address = `http://127.0.0.1:${this.server.address().port}`;
    return this;
  }

  cut() {
    this.#cut = true;
    for (const socket of this.#sockets) socket.destroy();
  }

  mend() {
    this.#cut = false;
  }

  close() {
    this.cut();
    this.server.close();
  }
}

export async function launch() {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: CHROMIUM_FLAGS });
}

/** A page in a fresh profile; whatever it complains about fails the test. */
export async function visit(browser, address, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 800 }, ...options });
  const page = await context.newPage();
  page.complaints = [];
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  page.on("console", (message) => {
    const text = message.text();
    // What a cut network makes the browser say by itself.
    if (message.type() === "error" && !/ERR_|Failed to load resource/.test(text)) page.complaints.push(text);
  });
  /** Hosts other than ours are never asked. */
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (!["data:", "blob:"].includes(url.protocol) && url.hostname !== "127.0.0.1") page.complaints.push(`asked ${url}`);
  });
  await page.goto(address);
  await ready(page);
  return page;
}

export const ready = (page) => page.waitForSelector("html[data-ready]", { timeout: 20_000 });

/** Sets chat settings, and asks. */
export async function ask(page, text, { model, ...settings } = {}) {
  if (model) await page.selectOption("#chat-model", model);
  for (const [name, value] of Object.entries(settings)) await page.fill(`#chat-settings-${name}`, String(value));
  await page.fill("#prompt", text);
  await page.press("#prompt", "Enter");
}

/** The messages as the page has stored them. */
export const messages = (page) =>
  page.evaluate(() => {
    const read = (name) => JSON.parse(localStorage.getItem(`girandole.${name}`));
    const ids = read(`conversation.${sessionStorage.getItem("girandole.conversation")}`) ?? [];
    return ids.map((id) => read(`message.${id}`));
  });

/** The last answer, once it has ended: its text as the page keeps it, which is what it shows. */
export async function lastAnswer(page, limitMs = 60_000) {
  const last = page.locator(".message.theirs").last();
  await until("the answer's end", async () => ["done", "stopped", "failed"].includes(await last.getAttribute("data-state")), limitMs);
  const { text } = (await messages(page)).at(-1);
  // The tests' models write plain letters, or text whose words Markdown leaves as they are.
  const words = (said) => said.replace(/[^\p{L}]+/gu, "");
  const shown = await last.locator(".said").evaluate((said) => {
    const copy = said.cloneNode(true);
    for (const button of copy.querySelectorAll("button")) button.remove();
    return copy.textContent;
  });
  assert.equal(words(shown), words(text));
  return { state: await last.getAttribute("data-state"), text, foot: await last.locator(".figures").textContent() };
}

/** What the service is asked for by the page's settings, to ask it again without the page. */
export const chatBody = (model, text, settings) => ({ model, messages: [{ role: "user", content: text }], ...settings });

/** The picture's file, as the page keeps it. */
export const pictureBytes = (page) =>
  page.evaluate(async () => {
    const result = (request) =>
      new Promise((resolve) => {
        request.onsuccess = () => resolve(request.result);
      });
    const database = await result(indexedDB.open("girandole", 1));
    const [{ blob }] = await result(database.transaction("pictures").objectStore("pictures").getAll());
    return Array.from(new Uint8Array(await blob.arrayBuffer()));
  });
