// Plots of an hour as SVG: one line or area each, with a scale and the value under the pointer.

import { h, setText } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 360;
const HEIGHT = 96;

function svg(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The next of 1, 2, 5, 10, 20 ... */
function niceCeiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}

/** 1.2k, 340, 7.5, 0.03 */
export function compact(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (value >= 10_000) return `${(value / 1000).toFixed(0)}k`;
  if (value >= 1000) return `${(value / 1000).toFixed(1)}k`;
  if (value >= 100 || Number.isInteger(value)) return value.toFixed(0);
  return value.toFixed(value >= 10 ? 1 : 2);
}

/**
 * A line of a plot.
 * @typedef {{name: string, values: (number|null)[]}} Series
 */

/** One plot. */
export class Plot {
  #series = [];
  #secondsPerPoint = 10;

  /**
   * @param {string} title
   * @param {string} unit
   * @param {number|null} top the scale's end; `null` for what the values need
   */
  constructor(title, unit, top = null) {
    this.unit = unit;
    this.top = top;
    this.now = h("span", { class: "plot-now" });
    this.scale = h("span", { class: "plot-scale" });
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.legend = h("p", { class: "plot-legend" });
    const frame = h("div", { class: "plot-frame" }, this.scale, this.picture);
    this.root = h("figure", { class: "plot" }, h("figcaption", {}, h("span", { text: title }), this.now), frame, this.legend);
    this.title = title;
    frame.addEventListener("pointermove", (event) => this.#point(event));
    frame.addEventListener("pointerleave", () => this.#say(-1));
  }

  /**
   * @param {Series[]} series all of one length
   * @param {number} secondsPerPoint
   */
  show(series, secondsPerPoint) {
    this.#series = series;
    this.#secondsPerPoint = secondsPerPoint;
    const most = Math.max(0, ...series.flatMap(({ values }) => values.map((value) => value ?? 0)));
    const top = this.top ?? niceCeiling(most);
    setText(this.scale, `${compact(top)} ${this.unit}`);
    const lines = series.map(({ values }, place) => this.#line(values, top, place));
    this.picture.replaceChildren(svg("path", { class: "plot-grid", d: `M0 ${HEIGHT / 2}H${WIDTH}` }), ...lines.flat());
    setText(this.legend, series.length > 1 ? series.map(({ name }, place) => `${place ? "dashed" : "solid"}: ${name}`).join(", ") : "");
    this.#say(-1);
  }

  #line(values, top, place) {
    const step = WIDTH / Math.max(1, values.length - 1);
    let path = "";
    let pen = "M";
    values.forEach((value, at) => {
      if (value === null) {
        pen = "M";
        return;
      }
      path += `${pen}${(at * step).toFixed(1)} ${(HEIGHT - 2 - (Math.min(value, top) / top) * (HEIGHT - 6)).toFixed(1)}`;
      pen = "L";
    });
    const line = svg("path", { class: `plot-line plot-${place + 1}`, d: path || "M0 0" });
    if (place > 0 || values.includes(null)) return [line];
    return [svg("path", { class: "plot-area", d: `${path}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z` }), line];
  }

  #point(event) {
    const box = this.picture.getBoundingClientRect();
    const length = this.#series[0]?.values.length ?? 0;
    this.#say(Math.round(((event.clientX - box.left) / box.width) * (length - 1)));
  }

  /** Tells the values of one point, or of the last. */
  #say(at) {
    const length = this.#series[0]?.values.length ?? 0;
    const place = at >= 0 && at < length ? at : length - 1;
    const values = this.#series.map(({ values }) => values[place]).filter((value) => value !== null && value !== undefined);
    const figure = values.length ? `${values.map(compact).join(" / ")} ${this.unit}` : "idle";
    const ago = (length - 1 - place) * this.#secondsPerPoint;
    const when = at < 0 || !ago ? "" : ago < 60 ? `, ${ago} s ago` : `, ${Math.round(ago / 60)} min ago`;
    setText(this.now, length ? figure + when : "");
    this.picture.setAttribute("aria-label", `${this.title}: ${this.now.textContent}`);
  }
}
