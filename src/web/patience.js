// What those who wait are told, and how a refused request is tried again.

import { Refusal, Unreachable } from "./api.js";
import { duration, h } from "./dom.js";

/**
 * A place in the queue as it was told.
 * @typedef {{position: number, waiting: number, eta_ms: number|null, heardAt: number}} Place
 */

/** 1st, 2nd, 3rd, 11th. */
function ordinal(number) {
  const teen = number % 100 >= 11 && number % 100 <= 13;
  return number + ((!teen && { 1: "st", 2: "nd", 3: "rd" }[number % 10]) || "th");
}

/**
 * "3rd in line of 7, starts in about 12 s". The time is counted down between two words of the service.
 * @param {Place} place
 */
export function describePlace(place) {
  const where = place.position === 0 ? "Next in line" : `${ordinal(place.position + 1)} in line of ${Math.max(place.waiting, place.position + 1)}`;
  if (place.eta_ms === null) return where;
  const left = place.eta_ms - (Date.now() - place.heardAt);
  return left < 1000 ? `${where}, starts any moment` : `${where}, starts in about ${duration(left)}`;
}

/**
 * "16 of 16 places taken, 7 waiting".
 * @param {{running_rows: number, slots: number, waiting_requests: number, state: string}} load
 */
export function describeLoad(load) {
  if (load.state !== "ready") return load.state;
  const running = load.running_rows === 0 ? "idle" : `${load.running_rows} of ${load.slots} places running`;
  return load.waiting_requests ? `${running}, ${load.waiting_requests} waiting` : running;
}

/** What a fault says to a person. */
export function describeError(error) {
  if (error instanceof Unreachable) return "The service cannot be reached.";
  if (error instanceof Refusal) {
    switch (error.code) {
      case "queue_full":
        return "Everybody is here: the queue is full.";
      case "model_loading":
        return "The model is still loading.";
      case "draining":
        return "The service is about to restart.";
      case "invalid_api_key":
        return "This service asks for a key.";
      case "request_expired":
        return "This request is over, and the service keeps it no longer.";
      case "request_not_found":
        return "The service does not know this request any more; it was probably restarted.";
      case "abandoned":
        return "The service stopped, since nobody was reading.";
    }
  }
  const text = error.message || "Something went wrong.";
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

const LONGEST_WAIT_MS = 60_000;

/**
 * Keeps on with a request that was refused or did not get through: waits as long as the service says, longer each
 * time and never quite as long as others do.
 */
export class Retry {
  #attempts = 0;
  #timer = 0;

  /**
   * @param {() => void} again
   * @param {() => void} changed called when what is shown has changed
   */
  constructor(again, changed) {
    this.again = again;
    this.changed = changed;
    this.automatic = false;
    this.dueAt = 0;
  }

  /** It was refused: says when to come back, and comes back by itself if that was asked for. */
  refused(error) {
    const base = error.retryAfterMs ?? 1_000;
    const backoff = Math.min(LONGEST_WAIT_MS, base * 1.5 ** this.#attempts);
    this.#attempts += 1;
    this.dueAt = Date.now() + backoff * (1 + Math.random() * 0.25);
    // What has not got through has cost nobody anything, and the key makes sure that it is done once.
    if (error instanceof Unreachable) this.automatic = true;
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#tick(), 500);
    this.#tick();
  }

  #tick() {
    if (Date.now() >= this.dueAt && this.automatic) {
      this.stop();
      this.again();
    }
    this.changed();
  }

  insist() {
    this.automatic = true;
    this.#tick();
  }

  stop() {
    clearInterval(this.#timer);
  }

  /** "You can try again in 12 s." */
  describe() {
    const left = this.dueAt - Date.now();
    if (this.automatic) return left > 0 ? `Trying again in ${duration(Math.max(left, 1000))}.` : "Trying again.";
    return left > 0 ? `You can come back in ${duration(Math.max(left, 1000))}.` : "You can try again now.";
  }

  /** The buttons that go with it. */
  buttons(giveUp) {
    const now = h("button", { type: "button", text: "Try now", onclick: () => (this.stop(), this.again()) });
    const keep = h("button", { type: "button", class: "primary", text: "Keep trying for me", onclick: () => this.insist() });
    const leave = h("button", { type: "button", text: "Give up", onclick: () => (this.stop(), giveUp()) });
    return this.automatic ? [now, leave] : [keep, now, leave];
  }
}
