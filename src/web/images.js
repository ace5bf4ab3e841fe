// Pictures: what is to be drawn, and the gallery of what is being and has been drawn.

import { Refusal, Unreachable } from "./api.js";
import { Controls, shareLink, sharedSettings } from "./controls.js";
import { announce, byId, h, iconButton, oncePerFrame, randomId } from "./dom.js";
import { describeError, Retry } from "./patience.js";
import { JobView } from "./picture.js";
import { pictures, read, Saver } from "./storage.js";

/** Jobs kept in the gallery; the oldest go. */
const MAX_JOBS = 40;
const KEPT = "pictures.jobs";
const ACTIVE = new Set(["submitting", "refused", "queued", "running"]);

/**
 * A request for pictures.
 * @typedef {object} Job
 * @property {string} id
 * @property {"submitting"|"refused"|"queued"|"running"|"done"|"stopped"|"failed"} state
 * @property {object} body what was asked for, without the picture that it began from
 * @property {string} idempotencyKey
 * @property {string} [request]
 * @property {number} after
 * @property {Drawn[]} images
 * @property {import("./patience.js").Place|null} [place]
 * @property {string} [note]
 */

/**
 * One picture of a job.
 * @typedef {{index: number, step: number, steps: number, eta_ms: number|null, heardAt?: number, preview?: string,
 *   url?: string, seed?: number, width: number, height: number}} Drawn
 */

/** @returns {import("./controls.js").Setting[]} */
const settingsFor = (image) => [
  ...(image.negative_prompt ? [{ name: "negative_prompt", label: "Leave out", kind: "text", wide: true, fallback: "what the picture should not show" }] : []),
  { name: "width", label: "Width", kind: "number", min: image.size_factor, step: image.size_factor, fallback: image.width },
  { name: "height", label: "Height", kind: "number", min: image.size_factor, step: image.size_factor, fallback: image.height },
  { name: "steps", label: "Steps", kind: "number", min: 1, max: image.max_steps, step: 1, fallback: image.steps },
  { name: "guidance_scale", label: "Guidance", kind: "number", min: 0, max: image.max_guidance_scale, step: 0.5, fallback: image.guidance_scale },
  { name: "schedule", label: "Schedule", kind: "choice", wide: true, choices: [["", "The model's own"], ...image.schedules.map(({ name, title }) => [name, title])] },
  { name: "n", label: "Pictures", kind: "number", min: 1, max: image.max_images, step: 1, fallback: 1 },
  { name: "seed", label: "Seed", kind: "number", min: 0, step: 1, fallback: "random" },
  { name: "detach", label: "Finish even while I am away", kind: "switch", fallback: true },
];

export class Images {
  #saver = new Saver();
  /** @type {Job[]} */
  jobs = read(KEPT, []);
  /** @type {Map<string, JobView>} */
  #views = new Map();
  #gallery = byId("gallery");
  #models = [];
  /** The picture to begin from, as a data URL; kept for as long as the page is open. */
  #source = null;
  #bodies = new Map();

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./feed.js").Feed} feed
   * @param {() => void} onActivity called when something begins that is waited for
   */
  constructor(api, feed, onActivity) {
    this.api = api;
    this.feed = feed;
    this.onActivity = onActivity;
    this.controls = new Controls(byId("image-settings"), "images");
    this.draw = oncePerFrame(() => {
      for (const view of this.#dirty) view.draw();
      this.#dirty.clear();
      byId("gallery-empty").hidden = this.jobs.length > 0;
    });
    byId("image-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    byId("image-prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.ask();
    });
    this.#watchSource();
    setInterval(() => {
      for (const job of this.jobs) if (ACTIVE.has(job.state)) this.#views.get(job.id)?.changed();
    }, 1000);
  }

  get model() {
    return this.#models.find(({ name }) => name === byId("image-model").value) ?? this.#models[0];
  }

  setModels(models) {
    this.#models = models;
    this.controls.show(settingsFor(this.model.image));
    byId("strength").value = this.model.image.strength;
    this.#showStrength();
  }

  open() {
    const { tab, values } = sharedSettings();
    if (tab === "images") {
      const { prompt = "", ...settings } = values;
      byId("image-prompt").value = prompt;
      this.controls.fill(settings);
    }
    for (const job of this.jobs) {
      this.#show(job);
      if (job.state === "submitting" || job.state === "refused") this.#submit(job);
      else if (ACTIVE.has(job.state)) this.#follow(job);
    }
    this.draw();
  }

  #show(job) {
    const view = new JobView(job, this);
    this.#views.set(job.id, view);
    this.#gallery.prepend(view.root);
    view.changed();
  }

  ask() {
    const prompt = byId("image-prompt").value.trim();
    if (!prompt) {
      byId("image-prompt").focus();
      return;
    }
    if (this.controls.complaint()) return;
    const body = { model: this.model.name, prompt, previews: true, ...this.controls.values() };
    if (this.#source) body.strength = byId("strength").valueAsNumber;
    const { width, height } = { ...this.model.image, ...body };
    const count = body.n ?? 1;
    const images = Array.from({ length: count }, (_, index) => ({ index, step: 0, steps: 0, eta_ms: null, width, height }));
    const job = { id: randomId(), state: "submitting", body, idempotencyKey: randomId(), after: 0, images };
    if (this.#source) this.#bodies.set(job.id, { ...body, image: this.#source });
    this.jobs.push(job);
    for (const old of this.jobs.splice(0, Math.max(0, this.jobs.length - MAX_JOBS))) this.#forget(old);
    this.#show(job);
    this.#views.get(job.id).root.scrollIntoView({ block: "nearest" });
    this.#submit(job);
  }

  async #submit(job) {
    job.state = "submitting";
    this.update(job);
    this.onActivity();
    const body = this.#bodies.get(job.id) ?? job.body;
    if (body.strength !== undefined && !body.image) {
      // The page was left before this had got through, and it keeps no large pictures.
      return this.#fail(job, "The picture to begin from is gone. Drop it again.");
    }
    try {
      const { id } = await this.api.submit(body, job.idempotencyKey);
      job.request = id;
      this.#bodies.delete(job.id);
      if (job.state !== "submitting") return void this.api.cancel(id).catch(() => {});
      job.state = "queued";
      this.update(job);
      this.#saver.flush();
      this.#follow(job);
    } catch (error) {
      this.#refused(job, error);
    }
  }

  #refused(job, error) {
    if (!(error instanceof Unreachable || (error instanceof Refusal && (error.isPassing || error.status === 409)))) {
      return this.#fail(job, describeError(error));
    }
    const view = this.#views.get(job.id);
    job.state = "refused";
    job.note = describeError(error);
    view.retry ??= new Retry(
      () => this.#submit(job),
      () => view.changed(),
    );
    view.retry.refused(error);
    this.update(job);
  }

  #fail(job, note) {
    job.state = "failed";
    job.note = note;
    announce(note);
    this.update(job);
  }

  #follow(job) {
    this.feed.follow(job.request, job.after, (event, data, seq) => {
      job.after = seq;
      this.#hear(job, event, data);
      this.update(job);
    });
  }

  #hear(job, event, data) {
    const news = data.images ?? [];
    switch (event) {
      case "queued":
        job.place = { ...data, heardAt: Date.now() };
        break;
      case "started":
        job.state = "running";
        job.place = null;
        break;
      case "progress":
        for (const one of news) Object.assign(job.images[one.index], one, { heardAt: Date.now() });
        break;
      case "preview":
        for (const one of news) job.images[one.index].preview = one.url;
        break;
      case "image":
        for (const one of news) Object.assign(job.images[one.index], one, { preview: undefined });
        break;
      case "choice_finished":
        if (data.choices.some((choice) => choice.finish_reason === "cancelled")) job.note = "Stopped";
        break;
      case "finished":
        job.state = job.note ? "stopped" : "done";
        for (const image of job.images) image.preview = undefined;
        announce(job.note ?? `${job.images.length === 1 ? "The picture is" : "The pictures are"} there`);
        break;
      case "failed":
        return this.#fail(job, describeError(new Refusal(0, data.error, null)));
      case "gone":
        return this.#fail(job, describeError(new Refusal(data.status, data.error ?? {}, null)));
    }
  }

  update(job) {
    this.#saver.later(KEPT, () => this.jobs);
    this.#views.get(job.id)?.changed();
  }

  /** @type {Set<JobView>} */
  #dirty = new Set();

  redraw(view) {
    this.#dirty.add(view);
    this.draw();
  }

  async stop(job) {
    if (job.request) {
      await this.api.cancel(job.request).catch((error) => announce(describeError(error)));
    } else {
      job.state = "stopped";
      job.note = "Not sent.";
      this.update(job);
    }
  }

  remove(job) {
    if (ACTIVE.has(job.state)) this.stop(job);
    this.jobs.splice(this.jobs.indexOf(job), 1);
    this.#forget(job);
    this.#saver.later(KEPT, () => this.jobs);
    this.draw();
  }

  #forget(job) {
    if (job.request) this.feed.unfollow(job.request);
    this.#views.get(job.id)?.forget();
    this.#views.delete(job.id);
    for (const image of job.images) pictures.remove(pictureName(job, image));
  }

  /** The picture's file: from the browser's store, or from the service, which keeps it for some minutes. */
  async file(job, image) {
    const name = pictureName(job, image);
    const kept = await pictures.get(name);
    if (kept) return kept;
    const blob = await this.api.picture(image.url);
    pictures.put(name, blob);
    return blob;
  }

  /** Fills the form with what a picture was made of. */
  reuse(job, image) {
    const { prompt, model, previews, strength, ...settings } = job.body;
    byId("image-prompt").value = prompt;
    this.controls.clear();
    this.controls.fill({ ...settings, seed: image.seed, n: 1 });
    byId("image-prompt").focus();
  }

  link() {
    return shareLink("images", { model: this.model.name, prompt: byId("image-prompt").value, ...this.controls.values() });
  }

  #watchSource() {
    const drop = byId("drop");
    const choose = byId("source-file");
    const take = (file) => file && this.setSource(file);
    choose.addEventListener("change", () => take(choose.files[0]));
    const panel = byId("images");
    panel.addEventListener("dragover", (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
    panel.addEventListener("dragleave", () => drop.classList.remove("over"));
    panel.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      take(event.dataTransfer.files[0]);
    });
    byId("strength").addEventListener("input", () => this.#showStrength());
  }

  #showStrength() {
    byId("strength-value").value = byId("strength").valueAsNumber.toFixed(2);
  }

  /** @param {Blob} file the picture to begin from */
  setSource(file) {
    if (!/^image\/(png|jpeg|webp)$/.test(file.type)) {
      announce("Only PNG, JPEG and WebP pictures can be used");
      byId("source-note").textContent = "Only PNG, JPEG and WebP pictures can be used.";
      return;
    }
    const reader = new FileReader();
    reader.addEventListener("load", () => {
      this.#source = reader.result;
      byId("source-note").textContent = "";
      const away = iconButton("close", "Begin from noise again", () => this.clearSource());
      byId("source").replaceChildren(h("img", { src: reader.result, alt: "The picture to begin from" }), away);
      byId("drop").dataset.filled = "";
      byId("strength-row").hidden = false;
    });
    reader.readAsDataURL(file);
  }

  clearSource() {
    this.#source = null;
    byId("source-file").value = "";
    byId("source").replaceChildren();
    delete byId("drop").dataset.filled;
    byId("strength-row").hidden = true;
  }
}

const pictureName = (job, image) => `${job.request ?? job.id}/${image.index}`;
