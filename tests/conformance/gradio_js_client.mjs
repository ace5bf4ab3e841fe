// The real `@gradio/client` against a running service; see gradio_client.py for its models.
//
//     node gradio_js_client.mjs --base-url http://127.0.0.1:8080 --modules FOLDER [--silent-seconds 150] [--only NAME]
//
// FOLDER has the package in its node_modules. After each check the same client makes another call.

import assert from "node:assert/strict";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

const { values: flags } = parseArgs({
  options: {
    "base-url": { type: "string" },
    modules: { type: "string" },
    "silent-seconds": { type: "string", default: "17" },
    only: { type: "string" },
    scripted: { type: "boolean" },
  },
});
const KEY = process.env.OPENAI_API_KEY;
const ROWS = 8;
const LONG = 6000;
const entry = path.join(flags.modules, "node_modules/@gradio/client/dist/index.js");
const { Client, handle_file } = await import(pathToFileURL(entry));

// Whatever the package complains about is a fault of ours.
const complaints = [];
for (const level of ["error", "warn"]) {
  console[level] = (...words) => complaints.push(words.map(String).join(" "));
}

const authorized = { headers: { authorization: `Bearer ${KEY}` } };
const connect = (options = authorized) =>
  Client.connect(flags["base-url"], { ...options, events: ["data", "status"] });
const client = await connect();
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(condition, ms = 20_000, message = "it did not happen in time") {
  const deadline = performance.now() + ms;
  while (performance.now() < deadline) {
    if (await condition()) return;
    await sleep(20);
  }
  assert.fail(message);
}

async function runningRows(model = "words") {
  const answer = await fetch(`${flags["base-url"]}/load`, authorized);
  const { models } = await answer.json();
  return models.find((one) => one.name === model).running_rows;
}

/** A job with all that is said of it, kept up to date. */
function submit(endpoint, data) {
  const job = client.submit(endpoint, data);
  const seen = { job, data: [], status: [], ended: false };
  seen.end = (async () => {
    for await (const message of job) seen[message.type]?.push(message);
    seen.ended = true;
    return seen;
  })();
  return seen;
}

const texts = (seen) => seen.data.map((message) => message.data[0]);
const last = (seen) => seen.status.at(-1);
const generate = async (...data) => (await client.predict("/generate", data)).data[0];

const long = [];

/** So many long jobs, each accepted before the next is sent. */
async function fill(count) {
  const jobs = [];
  for (let number = 0; number < count; number++) {
    const seen = submit("/generate", [`long ${number}`, LONG]);
    await until(() => seen.job.event_id() || seen.ended);
    jobs.push(seen);
  }
  long.push(...jobs);
  return jobs;
}

async function clear(jobs) {
  await Promise.all(jobs.map((seen) => seen.job.cancel()));
  await until(async () => (await runningRows()) === 0, 20_000, "cancelled jobs go on");
  await Promise.all(jobs.map((seen) => seen.end));
}

const checks = {
  async view_api() {
    const { named_endpoints: named } = await client.view_api();
    const expected = ["chat", "chat_slow", "chat_words", "generate", "generate_slow", "generate_words"];
    assert.deepEqual(
      Object.keys(named).sort(),
      [...expected, "img2img", "txt2img"].map((name) => `/${name}`),
    );
    const names = named["/generate"].parameters.map((one) => one.parameter_name);
    assert.deepEqual(names, ["prompt", "max_tokens", "temperature", "top_p", "seed"]);
    assert.equal(named["/img2img"].parameters[0].type, "Blob | File | Buffer");
  },

  async keys() {
    const other = await connect({ token: KEY });
    assert.equal((await other.predict("/generate", ["hi", 2])).data[0].length, 2);
    await assert.rejects(connect({}));
  },

  async by_position_and_by_name() {
    const at = await generate("hello", 20, 0.5, 0.9, 7);
    const named = await client.predict("/generate", {
      prompt: "hello", max_tokens: 20, temperature: 0.5, top_p: 0.9, seed: 7,
    });
    assert.equal(at.length, 20);
    assert.equal(named.data[0], at);
    assert.notEqual(await generate("hello", 20, 0.5, 0.9, 8), at);
  },

  async chat() {
    const said = { message: "hello", system_message: "Be brief.", max_tokens: 20, seed: 7 };
    const one = await client.predict("/chat", said);
    const history = [{ role: "user", content: "one" }, { role: "assistant", content: "two" }];
    const other = await client.predict("/chat", { ...said, history });
    assert.equal(one.data[0].length, 20);
    assert.notEqual(one.data[0], other.data[0]);
  },

  async iterate() {
    const began = performance.now();
    const seen = await submit("/generate", ["hello", 300]).end;
    const taken = (performance.now() - began) / 1000;
    const said = texts(seen);
    assert.equal(said.at(-1).length, 300);
    said.reduce((before, after) => {
      assert.ok(after.startsWith(before), `${before} / ${after}`);
      return after;
    });
    assert.ok(said.length >= 6 && said.length <= 20 * taken + 5, `${said.length} in ${taken} s`);
    assert.equal(last(seen).stage, "complete");
  },

  async rank_and_eta() {
    const jobs = await fill(ROWS);
    await until(async () => (await runningRows()) === ROWS);
    const waiting = await fill(2);
    await until(() => waiting.every((seen) => last(seen)?.position !== undefined));
    assert.deepEqual(waiting.map((seen) => last(seen).position), [0, 1]);
    const status = last(waiting[1]);
    assert.ok(status.size === 2 && status.eta > 0, JSON.stringify(status));
    await waiting[0].job.cancel();
    await until(() => last(waiting[1]).position === 0, 20_000, "nobody moved up");
    await clear([...jobs, ...waiting]);
  },

  async progress() {
    const seen = await submit("/txt2img", { prompt: "a circle", steps: 60 }).end;
    const units = seen.status.flatMap((status) => status.progress_data ?? []);
    const steps = units.map((unit) => unit.index);
    assert.ok(new Set(steps).size >= 3, `${steps}`);
    assert.deepEqual(steps, [...steps].sort((a, b) => a - b));
    assert.ok(units.every((unit) => unit.length === 60 && unit.unit === "steps"));
    assert.ok(seen.data.length >= 2, "no previews");
  },

  async pictures() {
    const drawn = await client.predict("/txt2img", {
      prompt: "a circle", steps: 4, seed: 5, count: 2, width: 64, height: 64,
    });
    const [gallery, seed] = drawn.data;
    assert.equal(seed, 5);
    assert.deepEqual(gallery.map((one) => one.caption), ["seed 5", "seed 6"]);
    const answer = await fetch(gallery[0].image.url, authorized);
    assert.equal(answer.headers.get("content-type"), "image/png");
    const bytes = new Uint8Array(await answer.arrayBuffer());
    assert.deepEqual([...bytes.slice(1, 4)], [..."PNG"].map((one) => one.charCodeAt(0)));
    this.file = bytes;
    this.result = gallery[0].image;
  },

  async upload() {
    if (!this.file) await this.pictures();
    const blob = new Blob([this.file], { type: "image/png" });
    for (const image of [blob, handle_file(blob), Buffer.from(this.file), this.result]) {
      const drawn = await client.predict("/img2img", { image, prompt: "a square", steps: 4, strength: 0.5 });
      assert.equal(drawn.data[0].length, 1);
    }
  },

  async cancel_running() {
    const seen = submit("/generate", ["hello", LONG]);
    await until(() => seen.data.length > 2);
    await seen.job.cancel();
    await until(async () => (await runningRows()) === 0, 5_000, "it goes on");
    await seen.end;
    assert.equal(last(seen).stage, "complete");
    const said = texts(seen);
    assert.ok(said.at(-1).startsWith(said.at(-2)), "the last value is not what there was");
  },

  async cancel_queued() {
    const jobs = await fill(ROWS + 1);
    await until(async () => (await runningRows()) === ROWS);
    const [sibling, cancelled] = [jobs[0], jobs.at(-1)];
    await until(() => sibling.data.length > 0);
    await cancelled.job.cancel();
    await cancelled.end;
    assert.equal(texts(cancelled).at(-1), "");
    const before = texts(sibling).at(-1).length;
    await until(() => texts(sibling).at(-1).length > before + 50, 20_000, "the sibling stopped");
    assert.equal(await runningRows(), ROWS);
    await clear(jobs);
  },

  async queue_full() {
    const jobs = await fill(2 * ROWS);
    const refused = await submit("/generate", ["one too many", 5]).end;
    assert.equal(last(refused).stage, "error");
    assert.match(last(refused).message, /currently busy/i);
    await client.predict("/txt2img", { prompt: "a circle", steps: 2 });
    await clear(jobs);
  },

  async errors() {
    const seen = await submit("/generate", ["poison", 20]).end;
    assert.equal(last(seen).stage, "error");
    assert.match(last(seen).message, /not finite/);
    const wrong = await submit("/generate", { prompt: "hello", temperature: 9 }).end;
    assert.equal(last(wrong).code, "validation_error");
    assert.match(last(wrong).message[0].message, /temperature must be between 0 and 2/);
  },

  async one_connection() {
    const jobs = Array.from({ length: 10 }, (_, n) => submit("/generate", { prompt: `job ${n}`, max_tokens: 30 }));
    const results = (await Promise.all(jobs.map((seen) => seen.end))).map((seen) => texts(seen).at(-1));
    assert.equal(new Set(results).size, 10);
    assert.ok(results.every((text) => text.length === 30));
  },

  async silence() {
    const seconds = Number(flags["silent-seconds"]);
    const began = performance.now();
    const drawn = await client.predict("/generate_slow", ["x".repeat(seconds), 5]);
    assert.equal(drawn.data[0].length, 5);
    assert.ok(performance.now() - began >= seconds * 950);
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  if (flags.only && flags.only !== name) continue;
  const began = performance.now();
  complaints.length = 0;
  try {
    await check.call(checks);
    assert.equal((await generate("again", 3)).length, 3);
    assert.deepEqual(name === "keys" ? [] : complaints, []);
    console.log(`ok      ${name} (${((performance.now() - began) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed++;
    await Promise.all(long.map((seen) => seen.job.cancel()));
    console.log(`FAILED  ${name}\n${error.stack}`);
  }
}
client.close();
process.exit(failed ? 1 : 0);
