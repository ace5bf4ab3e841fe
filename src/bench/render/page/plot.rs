//! One diagram as inline SVG: axes, and what is drawn between them.

use std::fmt::Write as _;

use super::markup::Markup;
use super::scale::Scale;
use crate::bench::results::{Estimate, Outcome};
use crate::bench::table::{decimal, number};

/// Room for the texts of the axes, in pixels.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;

/// The sides of a diagram, in pixels; the page scales it.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) width: f64,
    pub(super) height: f64,
}

/// An axis with its name and how its values are written. An x axis may go without a name.
pub(super) struct Axis {
    pub(super) scale: Scale,
    pub(super) title: String,
    pub(super) write: fn(f64) -> String,
}

/// A diagram to draw into.
pub(super) struct Plot {
    x: Scale,
    y: Scale,
    size: Size,
    below: f64,
}

/// A number for an axis: `0`, `20`, `1.5 k`.
pub(super) fn plain(value: f64) -> String {
    let text = match value.abs() >= 10_000.0 {
        true => decimal(value, ""),
        false => number(value),
    };
    short(&text)
}

/// Milliseconds for an axis: `20 ms`, `1 s`.
pub(super) fn latency(value: f64) -> String {
    match value >= 1000.0 {
        true => format!("{} s", short(&number(value / 1000.0))),
        false => format!("{} ms", short(&number(value))),
    }
}

/// A share for an axis: `80 %`.
pub(super) fn share(value: f64) -> String {
    format!("{} %", short(&number(value * 100.0)))
}

/// Without zeros that say nothing: marks stand at round numbers.
fn short(text: &str) -> String {
    let (digits, rest) = text.split_once(' ').unwrap_or((text, ""));
    let digits = match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => digits,
    };
    format!("{digits} {rest}").trim_end().to_owned()
}

impl Plot {
    /// Draws the axes, then what `inside` draws. `description` says in words what there is to see.
    pub(super) fn draw(
        markup: &mut Markup,
        size: Size,
        description: &str,
        x: Axis,
        y: Axis,
        inside: impl FnOnce(&Plot, &mut Markup),
    ) {
        let below = if x.title.is_empty() {
            BOTTOM - 16.0
        } else {
            BOTTOM
        };
        let plot = Plot {
            x: x.scale.on(LEFT, size.width - RIGHT),
            y: y.scale.on(size.height - below, TOP),
            size,
            below,
        };
        let view = format!("0 0 {} {}", size.width, size.height);
        let attributes: [(&str, &dyn std::fmt::Display); 4] = [
            ("viewBox", &view),
            ("role", &"img"),
            ("aria-label", &description),
            ("class", &"plot"),
        ];
        markup.element("svg", &attributes, |markup| {
            plot.axes(markup, &x, &y);
            inside(&plot, markup);
        });
        markup.line();
    }

    fn axes(&self, markup: &mut Markup, x: &Axis, y: &Axis) {
        let bottom = self.bottom();
        for tick in self.y.ticks() {
            let at = pixel(self.y.at(tick));
            let right = self.size.width - RIGHT;
            line(markup, "grid", (LEFT, &at), (right, &at));
            let attributes: Pairs<'_> = &[
                ("class", &"tick end"),
                ("x", &(LEFT - 8.0)),
                ("y", &at),
                ("dy", &"0.32em"),
            ];
            markup.element("text", attributes, |markup| markup.text((y.write)(tick)));
        }
        for tick in self.x.ticks() {
            let at = pixel(self.x.at(tick));
            let (from, to) = (bottom, bottom + 5.0);
            let attributes: Pairs<'_> = &[
                ("class", &"axis"),
                ("x1", &at),
                ("x2", &at),
                ("y1", &from),
                ("y2", &to),
            ];
            markup.empty("line", attributes);
            let below = bottom + 18.0;
            let attributes: Pairs<'_> = &[("class", &"tick middle"), ("x", &at), ("y", &below)];
            markup.element("text", attributes, |markup| markup.text((x.write)(tick)));
        }
        let at = pixel(bottom);
        line(markup, "axis", (LEFT, &at), (self.size.width - RIGHT, &at));
        if x.title.is_empty() {
            return self.name_upright(markup, &y.title);
        }
        let middle = pixel((LEFT + self.size.width - RIGHT) / 2.0);
        let under = pixel(self.size.height - 6.0);
        let attributes: Pairs<'_> = &[("class", &"name middle"), ("x", &middle), ("y", &under)];
        markup.element("text", attributes, |markup| markup.text(&x.title));
        self.name_upright(markup, &y.title);
    }

    /// The name of the y axis, read from below.
    fn name_upright(&self, markup: &mut Markup, title: &str) {
        let middle = pixel((TOP + self.bottom()) / 2.0);
        let turned = format!("translate(14 {middle}) rotate(-90)");
        let attributes: Pairs<'_> = &[("class", &"name middle"), ("transform", &turned)];
        markup.element("text", attributes, |markup| markup.text(title));
    }

    /// The pixel of the x axis.
    fn bottom(&self) -> f64 {
        self.size.height - self.below
    }

    /// Straight lines from point to point.
    pub(super) fn path(&self, markup: &mut Markup, class: &str, points: &[(f64, f64)]) {
        if points.len() > 1 {
            let path = self.through(points);
            markup.empty("path", &[("class", &format!("line {class}")), ("d", &path)]);
        }
    }

    /// The area between two lines over the same values.
    pub(super) fn band(&self, markup: &mut Markup, class: &str, edges: &[(f64, f64, f64)]) {
        if edges.len() < 2 {
            return;
        }
        let lower: Vec<_> = edges.iter().map(|(x, low, _)| (*x, *low)).collect();
        let upper: Vec<_> = edges.iter().rev().map(|(x, _, high)| (*x, *high)).collect();
        let path = format!("{}L{}Z", self.through(&lower), &self.through(&upper)[1..]);
        markup.empty("path", &[("class", &format!("area {class}")), ("d", &path)]);
    }

    /// The area under a line.
    pub(super) fn area(&self, markup: &mut Markup, class: &str, points: &[(f64, f64)]) {
        let edges: Vec<_> = points.iter().map(|(x, y)| (*x, 0.0, *y)).collect();
        self.band(markup, class, &edges);
    }

    fn through(&self, points: &[(f64, f64)]) -> String {
        let mut path = String::new();
        for (index, (x, y)) in points.iter().enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            let (x, y) = (pixel(self.x.at(*x)), pixel(self.y.at(*y)));
            let written = write!(path, "{letter}{x} {y}");
            debug_assert!(written.is_ok(), "a string takes everything");
        }
        path
    }

    /// Upright bars, each as wide as `width` values.
    pub(super) fn bars(
        &self,
        markup: &mut Markup,
        class: &'static str,
        width: f64,
        bars: &[(f64, f64)],
    ) {
        let floor = self.bottom();
        for (x, y) in bars.iter().filter(|(_, y)| *y > 0.0) {
            let (left, right) = (self.x.at(x - width), self.x.at(*x));
            let top = self.y.at(*y);
            let wide = pixel((right - left - 0.5).max(1.0));
            let high = pixel((floor - top).max(1.0));
            let (left, top) = (pixel(left), pixel(top));
            let attributes: Pairs<'_> = &[
                ("class", &class),
                ("x", &left),
                ("y", &top),
                ("width", &wide),
                ("height", &high),
            ];
            markup.empty("rect", attributes);
        }
    }

    /// A level with its name: a limit.
    pub(super) fn level(&self, markup: &mut Markup, value: f64, text: &str) {
        let at = self.y.at(value);
        let (right, y) = (self.size.width - RIGHT, pixel(at));
        line(markup, "objective", (LEFT, &y), (right, &y));
        // Under the line, where there is no room above it.
        let text_at = pixel(if at < TOP + 14.0 { at + 14.0 } else { at - 5.0 });
        let left = LEFT + 6.0;
        let attributes: Pairs<'_> = &[
            ("class", &"note objective-text"),
            ("x", &left),
            ("y", &text_at),
        ];
        markup.element("text", attributes, |markup| markup.text(text));
    }

    /// A value of the x axis with its name, over an interval if there is one.
    pub(super) fn upright(&self, markup: &mut Markup, value: &Estimate, text: &str) {
        let bottom = self.bottom();
        if let Some((low, high)) = value.interval() {
            let (left, right) = (self.x.at(low), self.x.at(high));
            let wide = pixel((right - left).max(1.0));
            let (left, top, high) = (pixel(left), pixel(TOP), pixel(bottom - TOP));
            let attributes: Pairs<'_> = &[
                ("class", &"knee-band"),
                ("x", &left),
                ("y", &top),
                ("width", &wide),
                ("height", &high),
            ];
            markup.empty("rect", attributes);
        }
        let x = self.x.at(value.value);
        let at = pixel(x);
        let attributes: Pairs<'_> = &[
            ("class", &"knee"),
            ("x1", &at),
            ("x2", &at),
            ("y1", &TOP),
            ("y2", &bottom),
        ];
        markup.empty("line", attributes);
        let on_right = x < self.size.width * 0.6;
        let (class, beside) = match on_right {
            true => ("note knee-text", x + 6.0),
            false => ("note knee-text end", x - 6.0),
        };
        let (beside, low) = (pixel(beside), pixel(bottom - 8.0));
        let attributes: Pairs<'_> = &[("class", &class), ("x", &beside), ("y", &low)];
        markup.element("text", attributes, |markup| markup.text(text));
    }

    /// A stretch of the x axis that does not count.
    pub(super) fn shade(&self, markup: &mut Markup, from: f64, to: f64) {
        let (left, right) = (self.x.at(from), self.x.at(to));
        if right - left < 0.5 {
            return;
        }
        let (left, wide) = (pixel(left), pixel(right - left));
        let high = self.bottom() - TOP;
        let attributes: Pairs<'_> = &[
            ("class", &"shade"),
            ("x", &left),
            ("y", &TOP),
            ("width", &wide),
            ("height", &high),
        ];
        markup.empty("rect", attributes);
    }

    /// An interval of the y axis.
    pub(super) fn whisker(&self, markup: &mut Markup, x: f64, low: f64, high: f64) {
        let at = pixel(self.x.at(x));
        let (low, high) = (pixel(self.y.at(low)), pixel(self.y.at(high)));
        let attributes: Pairs<'_> = &[
            ("class", &"whisker"),
            ("x1", &at),
            ("x2", &at),
            ("y1", &low),
            ("y2", &high),
        ];
        markup.empty("line", attributes);
    }

    /// A measured point, in the shape of its verdict, with what to show under the pointer.
    pub(super) fn mark(
        &self,
        markup: &mut Markup,
        (x, y): (f64, f64),
        outcome: Outcome,
        hint: &str,
    ) {
        let place = format!("translate({} {})", pixel(self.x.at(x)), pixel(self.y.at(y)));
        let (class, path) = mark_of(outcome);
        markup.element("g", &[("class", &class), ("transform", &place)], |markup| {
            markup.tagged("title", "", hint);
            markup.empty("path", &[("d", &path)]);
        });
    }

    /// The points of a line, so that one alone is seen, too.
    pub(super) fn dots(&self, markup: &mut Markup, class: &'static str, points: &[(f64, f64)]) {
        for (x, y) in points {
            let (x, y) = (pixel(self.x.at(*x)), pixel(self.y.at(*y)));
            let class = format!("dot {class}");
            markup.empty(
                "circle",
                &[("class", &class), ("cx", &x), ("cy", &y), ("r", &"2.5")],
            );
        }
    }

    /// Names at the ends of lines, moved apart where they would touch.
    pub(super) fn line_names(&self, markup: &mut Markup, ends: &[(&str, &str, (f64, f64))]) {
        const APART: f64 = 13.0;
        let mut ends: Vec<(&str, &str, f64, f64)> = ends
            .iter()
            .map(|(name, class, (x, y))| (*name, *class, self.x.at(*x), self.y.at(*y)))
            .collect();
        ends.sort_by(|a, b| b.3.total_cmp(&a.3));
        let mut lowest = f64::INFINITY;
        for (name, class, x, y) in ends {
            let y = y.min(lowest - APART);
            lowest = y;
            let (class, x, y) = (format!("line-name {class}"), pixel(x + 6.0), pixel(y));
            let attributes: Pairs<'_> =
                &[("class", &class), ("x", &x), ("y", &y), ("dy", &"0.32em")];
            markup.element("text", attributes, |markup| markup.text(name));
        }
    }

    /// A few words beside a point.
    pub(super) fn beside(&self, markup: &mut Markup, (x, y): (f64, f64), text: &str) {
        let (x, y) = (self.x.at(x), self.y.at(y));
        let on_right = x < self.size.width - RIGHT - 60.0;
        let (class, x) = match on_right {
            true => ("note", x + 9.0),
            false => ("note end", x - 9.0),
        };
        let (x, y) = (pixel(x), pixel((y - 7.0).max(TOP + 8.0)));
        let attributes: Pairs<'_> = &[("class", &class), ("x", &x), ("y", &y)];
        markup.element("text", attributes, |markup| markup.text(text));
    }
}

/// The class and the outline of a verdict's mark: told apart by shape as well as by colour.
pub(super) fn mark_of(outcome: Outcome) -> (&'static str, &'static str) {
    match outcome {
        Outcome::Pass => ("mark pass", "M0 -5A5 5 0 1 1 0 5A5 5 0 1 1 0 -5Z"),
        Outcome::Fail => ("mark fail", "M-4.5 -4.5L4.5 4.5M-4.5 4.5L4.5 -4.5"),
        Outcome::Undecided => ("mark undecided", "M0 -6L6 0L0 6L-6 0Z"),
        Outcome::Void => ("mark void", "M-4 -4H4V4H-4Z"),
    }
}

type Pairs<'a> = super::markup::Attributes<'a>;

fn line(markup: &mut Markup, class: &'static str, from: (f64, &str), to: (f64, &str)) {
    let attributes: Pairs<'_> = &[
        ("class", &class),
        ("x1", &from.0),
        ("y1", &from.1),
        ("x2", &to.0),
        ("y2", &to.1),
    ];
    markup.empty("line", attributes);
}

/// Tenths are finer than any screen.
fn pixel(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0")
        .map_or_else(|| text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_axes_are_short() {
        for (text, expected) in [
            (plain(0.0), "0"),
            (plain(20.0), "20"),
            (plain(1500.0), "1500"),
            (plain(20_000.0), "20 k"),
            (plain(0.5), "0.5"),
            (latency(200.0), "200 ms"),
            (latency(2000.0), "2 s"),
            (share(0.8), "80 %"),
            (share(1.0), "100 %"),
        ] {
            assert_eq!(text, expected);
        }
        assert_eq!(pixel(12.04), "12");
        assert_eq!(pixel(12.06), "12.1");
    }
}
