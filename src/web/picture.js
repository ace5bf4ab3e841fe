// One request for pictures on the page: previews while they are drawn, then the pictures.

import { duration, h, icon, iconButton, setText } from "./dom.js";
import { describeError, describePlace } from "./patience.js";

export class JobView {
  #state = "";
  /** @type {FrameView[]} */
  #frames;

  /**
   * @param {import("./images.js").Job} job
   * @param {import("./images.js").Images} images
   */
  constructor(job, images) {
    this.job = job;
    this.images = images;
    /** @type {import("./patience.js").Retry|undefined} */
    this.retry = undefined;
    this.figures = h("p", { class: "figures" });
    this.actions = h("span", { class: "actions" });
    this.#frames = job.images.map((image) => new FrameView(job, image, images));
    this.root = h(
      "li",
      { class: "job" },
      h("h2", { class: "job-prompt", text: job.body.prompt, title: job.body.prompt }),
      h("ul", { class: "frames" }, ...this.#frames.map((frame) => frame.root)),
      h("div", { class: "foot" }, this.figures, this.actions),
    );
  }

  changed() {
    this.images.redraw(this);
  }

  draw() {
    const { job } = this;
    const state = job.state + (this.retry?.automatic ?? "");
    if (this.#state !== state) {
      this.#state = state;
      this.root.dataset.state = job.state;
      this.actions.replaceChildren(...this.#buttons());
    }
    setText(this.figures, this.#describe());
    for (const frame of this.#frames) frame.draw();
  }

  #describe() {
    const { job } = this;
    switch (job.state) {
      case "submitting":
        return "Sending";
      case "refused":
        return `${job.note} ${this.retry?.describe() ?? ""}`;
      case "queued":
        return job.place ? describePlace(job.place) : "In line";
      case "running":
        return this.#progress();
      case "stopped":
      case "failed":
        return job.note;
      default:
        return [`${job.images[0].width} × ${job.images[0].height}`, job.images[0].steps ? `${job.images[0].steps} steps` : "", job.body.model].filter(Boolean).join(" · ");
    }
  }

  #progress() {
    const { images } = this.job;
    const begun = images.filter(({ steps }) => steps > 0);
    if (!begun.length) return "Reading the prompt";
    // Of several, the one that is furthest behind.
    const { step, steps } = begun.reduce((least, image) => (image.step / image.steps < least.step / least.steps ? image : least));
    const left = begun.map(({ eta_ms, heardAt, url }) => (eta_ms === null || url ? 0 : eta_ms - (Date.now() - heardAt)));
    const most = Math.max(0, ...left);
    return `Step ${step} of ${steps}${most > 1000 ? `, about ${duration(most)} left` : ""}`;
  }

  #buttons() {
    const { job, images } = this;
    if (job.state === "refused" && this.retry) return this.retry.buttons(() => images.remove(job));
    if (["submitting", "queued", "running"].includes(job.state)) {
      return [h("button", { type: "button", onclick: () => images.stop(job) }, icon("stop"), "Stop")];
    }
    return [iconButton("trash", "Remove from the gallery", () => images.remove(job))];
  }

  forget() {
    this.retry?.stop();
    this.root.remove();
    for (const frame of this.#frames) frame.forget();
  }
}

/** The frame of one picture. */
class FrameView {
  #shown = "";
  #address = "";

  constructor(job, image, images) {
    this.job = job;
    this.image = image;
    this.images = images;
    this.picture = h("img", { alt: "", hidden: true });
    this.bar = h("progress", { max: 1, value: 0, "aria-label": "Denoising" });
    this.tools = h("div", { class: "tools" });
    this.root = h("li", { class: "frame" }, this.picture, this.bar, this.tools);
    // Known before anything is drawn, so that nothing on the page jumps.
    this.root.style.aspectRatio = `${image.width} / ${image.height}`;
  }

  draw() {
    const { image, job } = this;
    const active = ["submitting", "queued", "running"].includes(job.state) && !image.url;
    this.bar.hidden = !active;
    if (active && image.steps) {
      this.bar.max = image.steps;
      this.bar.value = image.step;
    }
    this.root.dataset.state = image.url ? "drawn" : active ? "drawing" : "empty";
    if (image.url) {
      if (this.#shown !== image.url) this.#showFile(image.url);
    } else if (image.preview && this.#shown !== image.preview) {
      this.#shown = image.preview;
      this.picture.src = image.preview;
      this.picture.alt = "What the picture looks like so far";
      this.picture.hidden = false;
    }
  }

  async #showFile(url) {
    this.#shown = url;
    try {
      const file = await this.images.file(this.job, this.image);
      this.#address = URL.createObjectURL(file);
      this.picture.src = this.#address;
      this.picture.alt = this.job.body.prompt;
      this.picture.hidden = false;
      this.tools.replaceChildren(...this.#buttons(file));
    } catch (error) {
      this.root.dataset.state = "empty";
      this.tools.replaceChildren(h("p", { class: "lost", text: describeError(error) }));
    }
  }

  #buttons(file) {
    const { image, job, images } = this;
    const name = `${job.request.slice(-8)}-${image.seed}.png`;
    const download = h(
      "a",
      { class: "quiet", href: this.#address, download: name, title: "Download, with what it was made of", "aria-label": "Download" },
      icon("download"),
    );
    return [
      download,
      iconButton("picture", "Begin another picture from this one", () => images.setSource(file)),
      iconButton("reuse", `Use these settings again, seed ${image.seed}`, () => images.reuse(job, image)),
    ];
  }

  forget() {
    if (this.#address) URL.revokeObjectURL(this.#address);
  }
}
