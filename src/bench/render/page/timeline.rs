//! A point second by second: what waits, what runs, what comes out, and what stood still.

use super::markup::Markup;
use super::plot::{self, Axis, Plot, Size};
use super::scale::Scale;
use crate::bench::results::{Point, Second};

/// Entries of one diagram at most; longer timelines are thinned out by their peaks.
const MAX_ENTRIES: usize = 600;

const SIZE: Size = Size {
    width: 1160.0,
    height: 160.0,
};

type Field = fn(&Second) -> Option<f64>;

/// One line of a panel: its name, its class, its values.
struct Line {
    name: &'static str,
    class: &'static str,
    field: Field,
}

/// One diagram of the stack.
struct Panel {
    title: &'static str,
    unit: &'static str,
    bars: bool,
    lines: &'static [Line],
}

const PANELS: [Panel; 6] = [
    Panel {
        title: "requests in the system",
        unit: "requests",
        bars: false,
        lines: &[
            Line {
                name: "open streams",
                class: "s1",
                field: |second| Some(f64::from(second.open_streams)),
            },
            Line {
                name: "queued in the server",
                class: "s4",
                field: |second| second.queued_requests,
            },
        ],
    },
    Panel {
        title: "batch fill",
        unit: "rows",
        bars: false,
        lines: &[
            Line {
                name: "running rows",
                class: "s1",
                field: |second| second.running_rows,
            },
            Line {
                name: "rows of a step, mean",
                class: "s2",
                field: |second| second.batch_fill_rows,
            },
        ],
    },
    Panel {
        title: "step time",
        unit: "ms",
        bars: false,
        lines: &[Line {
            name: "step, mean",
            class: "s3",
            field: |second| second.step_ms,
        }],
    },
    Panel {
        title: "tokens",
        unit: "tokens/s",
        bars: false,
        lines: &[Line {
            name: "output tokens",
            class: "s2",
            field: |second| Some(f64::from(second.output_tokens)),
        }],
    },
    Panel {
        title: "longest stall",
        unit: "ms",
        bars: true,
        lines: &[Line {
            name: "longest gap of any stream",
            class: "b4",
            field: |second| second.longest_stall_ms,
        }],
    },
    Panel {
        title: "machine",
        unit: "share, cores",
        bars: false,
        lines: &[
            Line {
                name: "GPU busy (share)",
                class: "s1",
                field: |second| second.gpu_share,
            },
            Line {
                name: "server (cores)",
                class: "s2",
                field: |second| second.server_cores,
            },
            Line {
                name: "client (cores)",
                class: "s4",
                field: |second| second.client_cores,
            },
        ],
    },
];

/// All panels of a point that have something to show.
pub(super) fn timeline(markup: &mut Markup, point: &Point) {
    let seconds = thinned(&point.timeline.seconds);
    let mut panels = Vec::new();
    for panel in &PANELS {
        let has_values = |line: &&Line| {
            let mut values = seconds.iter().filter_map(line.field);
            values.any(|value| value > 0.0)
        };
        let lines: Vec<&Line> = panel.lines.iter().filter(has_values).collect();
        if !lines.is_empty() {
            panels.push((panel, lines));
        }
    }
    let count = panels.len();
    for (index, (panel, lines)) in panels.iter().enumerate() {
        draw(markup, point, panel, lines, &seconds, index + 1 == count);
    }
}

fn draw(
    markup: &mut Markup,
    point: &Point,
    panel: &Panel,
    lines: &[&Line],
    seconds: &[Second],
    is_last: bool,
) {
    markup.element("figure", &[("class", &"strip")], |markup| {
        markup.element("figcaption", &[], |markup| {
            markup.text(panel.title);
            for line in lines {
                markup.element("span", &[("class", &"key")], |markup| {
                    markup.element("i", &[("class", &format!("swatch {}", line.class))], |_| {});
                    markup.text(line.name);
                });
            }
        });
        let times = &point.timeline;
        let end = seconds.last().map_or(1.0, |second| second.at_seconds);
        let x = Axis {
            scale: Scale::between(0.0, end),
            title: if is_last { "seconds" } else { "" }.to_owned(),
            write: plot::plain,
        };
        let all = lines
            .iter()
            .flat_map(|line| seconds.iter().filter_map(line.field));
        let y = Axis {
            scale: Scale::linear(all),
            title: panel.unit.to_owned(),
            write: plot::plain,
        };
        let width = (end / seconds.len().max(1) as f64).max(f64::MIN_POSITIVE);
        Plot::draw(markup, SIZE, panel.title, x, y, |plot, markup| {
            plot.shade(markup, 0.0, times.measured_from_seconds);
            plot.shade(markup, times.measured_to_seconds, end);
            for line in lines {
                let values: Vec<(f64, f64)> = seconds
                    .iter()
                    .filter_map(|second| Some((second.at_seconds, (line.field)(second)?)))
                    .collect();
                match panel.bars {
                    true => plot.bars(markup, line.class, width, &values),
                    false => {
                        if lines.len() == 1 {
                            plot.area(markup, line.class, &values);
                        }
                        plot.path(markup, line.class, &values);
                    }
                }
            }
        });
    });
}

/// At most [`MAX_ENTRIES`]: of neighbours, every field's peak, so that no stall is thinned out.
fn thinned(seconds: &[Second]) -> Vec<Second> {
    let every = seconds.len().div_ceil(MAX_ENTRIES).max(1);
    seconds.chunks(every).map(peak).collect()
}

fn peak(seconds: &[Second]) -> Second {
    let most = |field: Field| seconds.iter().filter_map(field).reduce(f64::max);
    let count = |field: fn(&Second) -> u32| seconds.iter().map(field).max().unwrap_or(0);
    Second {
        at_seconds: seconds.last().map_or(0.0, |second| second.at_seconds),
        due: count(|second| second.due),
        completed: count(|second| second.completed),
        bad: count(|second| second.bad),
        open_streams: count(|second| second.open_streams),
        output_tokens: count(|second| second.output_tokens),
        stalls: count(|second| second.stalls),
        longest_stall_ms: most(|second| second.longest_stall_ms),
        time_to_first_token_ms: most(|second| second.time_to_first_token_ms),
        queued_requests: most(|second| second.queued_requests),
        running_rows: most(|second| second.running_rows),
        batch_fill_rows: most(|second| second.batch_fill_rows),
        step_ms: most(|second| second.step_ms),
        kv_share: most(|second| second.kv_share),
        client_cores: most(|second| second.client_cores),
        server_cores: most(|second| second.server_cores),
        gpu_share: most(|second| second.gpu_share),
        gpu_watts: most(|second| second.gpu_watts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_stall_is_thinned_out() {
        let mut seconds: Vec<Second> = (1..=3000u32)
            .map(|at| Second {
                at_seconds: f64::from(at),
                ..Second::default()
            })
            .collect();
        seconds[1234].longest_stall_ms = Some(2000.0);
        let thinned = thinned(&seconds);
        assert_eq!(thinned.len(), MAX_ENTRIES);
        assert_eq!(thinned.last().unwrap().at_seconds, 3000.0);
        let stalls: Vec<f64> = thinned
            .iter()
            .filter_map(|second| second.longest_stall_ms)
            .collect();
        assert_eq!(stalls, [2000.0]);
    }
}
