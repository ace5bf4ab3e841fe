// Settings as forms: made of a description, remembered, and shared by link.

import { h } from "./dom.js";
import { read, write } from "./storage.js";

/**
 * One setting.
 * @typedef {object} Setting
 * @property {string} name as the service names the field
 * @property {string} label
 * @property {"number"|"text"|"long"|"choice"|"switch"} kind
 * @property {number} [min]
 * @property {number} [max]
 * @property {number} [step]
 * @property {string|number|boolean} [fallback] what the field shows when it is empty, and the service uses
 * @property {[string, string][]} [choices] values and labels
 * @property {string} [hint]
 * @property {boolean} [wide]
 */

/** A form of settings. What is left empty is left to the service. */
export class Controls {
  /** @type {Map<string, HTMLInputElement>} */
  #fields = new Map();
  #kept;

  /**
   * @param {HTMLElement} root
   * @param {string} kept the name under which the values are remembered
   * @param {() => void} [onChange]
   */
  constructor(root, kept, onChange = () => {}) {
    this.root = root;
    this.#kept = kept;
    root.addEventListener("input", () => {
      write(this.#kept, this.values());
      onChange();
    });
  }

  /**
   * Makes the fields anew, with the values that the old ones had or that are remembered.
   * @param {Setting[]} settings
   */
  show(settings) {
    const values = { ...read(this.#kept, {}), ...this.values() };
    this.#fields.clear();
    const rows = settings.map((setting) => this.#row(setting));
    this.root.replaceChildren(...rows);
    this.fill(values);
  }

  #row(setting) {
    const id = `${this.root.id}-${setting.name}`;
    const field = this.#field(setting, id);
    this.#fields.set(setting.name, field);
    const label = h("label", { htmlFor: id, text: setting.label });
    const hint = setting.hint && h("p", { class: "hint", id: `${id}-hint`, text: setting.hint });
    if (hint) field.setAttribute("aria-describedby", hint.id);
    const kind = setting.kind === "switch" ? "row switch" : setting.wide || setting.kind === "long" ? "row wide" : "row";
    return h("div", { class: kind }, ...(setting.kind === "switch" ? [field, label] : [label, field]), hint);
  }

  #field(setting, id) {
    const fallback = setting.fallback === undefined || setting.fallback === null ? "" : String(setting.fallback);
    switch (setting.kind) {
      case "choice":
        return h("select", { id }, ...setting.choices.map(([value, text]) => h("option", { value, text })));
      case "switch":
        return h("input", { id, type: "checkbox", checked: setting.fallback === true });
      case "long":
        return h("textarea", { id, rows: 3, placeholder: fallback });
      default: {
        const bounds = { min: setting.min, max: setting.max, step: setting.step ?? "any" };
        const number = setting.kind === "number";
        return h("input", { id, type: setting.kind, placeholder: fallback, ...(number ? { ...bounds, inputMode: "decimal" } : {}) });
      }
    }
  }

  /** What has been filled in, by name. Empty fields are left out. */
  values() {
    const values = {};
    for (const [name, field] of this.#fields) {
      if (field.type === "checkbox") values[name] = field.checked;
      else if (field.type === "number") {
        if (field.value !== "" && Number.isFinite(field.valueAsNumber)) values[name] = field.valueAsNumber;
      } else if (field.value !== "") values[name] = field.value;
    }
    return values;
  }

  /** Fills in; names that are no fields, and choices that there are not, are passed over. */
  fill(values) {
    for (const [name, value] of Object.entries(values)) {
      const field = this.#fields.get(name);
      if (!field) continue;
      if (field.type === "checkbox") field.checked = value === true || value === "true";
      else if (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === String(value))) field.value = value;
    }
    write(this.#kept, this.values());
  }

  /** Empties all but the names given. */
  clear(except = []) {
    for (const [name, field] of this.#fields) {
      if (!except.includes(name) && field.type !== "checkbox" && field.tagName !== "SELECT") field.value = "";
    }
  }

  /** The first field that holds what it must not, told to the user; `null` if there is none. */
  complaint() {
    for (const field of this.#fields.values()) {
      if (!field.checkValidity()) {
        field.reportValidity();
        return field;
      }
    }
    return null;
  }

  /** @param {string} name */
  field(name) {
    return this.#fields.get(name);
  }
}

/**
 * A link to this page that restores settings. They stand behind the `#`, which browsers do not send.
 * @param {string} tab
 * @param {Record<string, unknown>} values
 */
export function shareLink(tab, values) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) parameters.set(name, String(value));
  const address = new URL(location.href);
  address.hash = parameters.size ? `${tab}?${parameters}` : tab;
  return address.href;
}

/** The tab and the settings that the page's address names. */
export function sharedSettings() {
  const [tab, query = ""] = location.hash.slice(1).split("?");
  return { tab, values: Object.fromEntries(new URLSearchParams(query)) };
}
