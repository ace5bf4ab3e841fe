// The service's HTTP API, as far as the pages use it.

import { tab } from "./storage.js";

/** The service has answered, and not with what was asked for. */
export class Refusal extends Error {
  /**
   * @param {number} status
   * @param {{code?: string, message?: string, field?: string}} error
   * @param {number|null} retryAfterMs when to come back, if it said so
   */
  constructor(status, error, retryAfterMs) {
    super(error.message ?? `the service answered with status ${status}`);
    this.status = status;
    this.code = error.code ?? "";
    this.field = error.field ?? null;
    this.retryAfterMs = retryAfterMs;
  }

  /** Whether the same may be taken later. */
  get isPassing() {
    return this.status === 429 || this.status === 503;
  }
}

/** The service cannot be reached. */
export class Unreachable extends Error {}

/** A way to the service with one kind of key. */
export class Api {
  #keyName;

  /**
   * @param {string} keyName where the key is kept for this tab
   * @param {() => void} onUnauthorized called when a key is asked for
   */
  constructor(keyName, onUnauthorized) {
    this.#keyName = keyName;
    this.onUnauthorized = onUnauthorized;
  }

  get key() {
    return tab.read(this.#keyName) ?? "";
  }
  set key(key) {
    tab.write(this.#keyName, key);
  }

  /** @returns {Record<string, string>} */
  get headers() {
    return this.key ? { authorization: `Bearer ${this.key}` } : {};
  }

  /**
   * Calls, and returns the response if it is one of success.
   * @param {string} method
   * @param {string} path
   * @param {{body?: unknown, headers?: Record<string, string>, signal?: AbortSignal}} [options]
   * @returns {Promise<Response>}
   */
  async call(method, path, { body, headers = {}, signal } = {}) {
    let response;
    try {
      response = await fetch(path, {
        method,
        signal,
        cache: "no-store",
        headers: { ...this.headers, ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Unreachable("the service cannot be reached");
    }
    if (response.ok) return response;
    if (response.status === 401) this.onUnauthorized();
    const answer = await response.json().catch(() => ({}));
    // A proxy in front answers so while the service is being started anew.
    if ([502, 504].includes(response.status) && !answer.error) {
      throw new Unreachable("the service cannot be reached");
    }
    const seconds = Number(response.headers.get("retry-after"));
    throw new Refusal(response.status, answer.error ?? {}, seconds > 0 ? seconds * 1000 : null);
  }

  async json(method, path, options) {
    return (await this.call(method, path, options)).json();
  }

  /** @returns {Promise<{models: object[]}>} */
  models() {
    return this.json("GET", "/api/v1/models");
  }

  load() {
    return this.json("GET", "/load");
  }

  /**
   * Submits a request. Repeating it with the same key makes no second one.
   * @param {object} body
   * @param {string} key
   * @returns {Promise<{id: string}>}
   */
  submit(body, key) {
    return this.json("POST", "/api/v1/requests", { body, headers: { "idempotency-key": key } });
  }

  status(id) {
    return this.json("GET", `/api/v1/requests/${id}`);
  }

  cancel(id) {
    return this.call("DELETE", `/api/v1/requests/${id}`);
  }

  /** @returns {Promise<Blob>} */
  async picture(url) {
    return (await this.call("GET", url)).blob();
  }
}
