//! What schedules are called: on our wire, in the web UI, in diffusers.

use std::fmt;
use std::str::FromStr;

use crate::job::ScheduleName;

/// A schedule and the spacing of its noise levels, as one name can say both ("DPM++ 2M Karras").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScheduleChoice {
    /// Which update.
    pub name: ScheduleName,
    /// Noise levels spaced as in Karras et al. (arXiv 2206.00364).
    pub karras: bool,
}

/// One schedule's names.
struct Names {
    name: ScheduleName,
    /// On our wire.
    wire: &'static str,
    /// What the web UI of AUTOMATIC1111 shows, and its clients send.
    label: &'static str,
    /// Its class in diffusers, as `scheduler_config.json` has it.
    class: &'static str,
    /// What else it is called, in [`compact`] form.
    aliases: &'static [&'static str],
}

const NAMES: [Names; 8] = [
    Names {
        name: ScheduleName::Ddim,
        wire: "ddim",
        label: "DDIM",
        class: "DDIMScheduler",
        aliases: &[],
    },
    Names {
        name: ScheduleName::Ddpm,
        wire: "ddpm",
        label: "DDPM",
        class: "DDPMScheduler",
        aliases: &[],
    },
    Names {
        name: ScheduleName::Euler,
        wire: "euler",
        label: "Euler",
        class: "EulerDiscreteScheduler",
        aliases: &["keuler"],
    },
    Names {
        name: ScheduleName::EulerAncestral,
        wire: "euler-ancestral",
        label: "Euler a",
        class: "EulerAncestralDiscreteScheduler",
        aliases: &["keulera", "keulerancestral"],
    },
    Names {
        name: ScheduleName::DpmPlusPlus2m,
        wire: "dpm++-2m",
        label: "DPM++ 2M",
        class: "DPMSolverMultistepScheduler",
        aliases: &["dpmpp2m", "kdpm++2m", "kdpmpp2m"],
    },
    Names {
        name: ScheduleName::UniPc,
        wire: "unipc",
        label: "UniPC",
        class: "UniPCMultistepScheduler",
        aliases: &[],
    },
    Names {
        name: ScheduleName::Lcm,
        wire: "lcm",
        label: "LCM",
        class: "LCMScheduler",
        aliases: &[],
    },
    Names {
        name: ScheduleName::FlowMatchEuler,
        wire: "flow-euler",
        label: "Flow Euler",
        class: "FlowMatchEulerDiscreteScheduler",
        aliases: &["flowmatcheuler"],
    },
];

/// Nobody calls a schedule that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a schedule; known are ddim, ddpm, euler, euler-ancestral, dpm++-2m, unipc, lcm and flow-euler \
     (euler, dpm++-2m, unipc and flow-euler also with \" karras\" behind)"
)]
pub struct UnknownSchedule;

impl ScheduleName {
    /// All of them, in the order in which they are listed.
    pub const ALL: [ScheduleName; 8] = [
        ScheduleName::Ddim,
        ScheduleName::Ddpm,
        ScheduleName::Euler,
        ScheduleName::EulerAncestral,
        ScheduleName::DpmPlusPlus2m,
        ScheduleName::UniPc,
        ScheduleName::Lcm,
        ScheduleName::FlowMatchEuler,
    ];

    /// The name on our wire.
    pub fn as_str(self) -> &'static str {
        self.names().wire
    }

    /// The name that the web UI of AUTOMATIC1111 shows.
    pub fn label(self) -> &'static str {
        self.names().label
    }

    /// The class in diffusers.
    pub fn class(self) -> &'static str {
        self.names().class
    }

    /// Whether its noise levels can be spaced as in Karras et al.
    pub fn takes_karras(self) -> bool {
        matches!(
            self,
            ScheduleName::Euler
                | ScheduleName::DpmPlusPlus2m
                | ScheduleName::UniPc
                | ScheduleName::FlowMatchEuler
        )
    }

    fn names(self) -> &'static Names {
        match self {
            ScheduleName::Ddim => &NAMES[0],
            ScheduleName::Ddpm => &NAMES[1],
            ScheduleName::Euler => &NAMES[2],
            ScheduleName::EulerAncestral => &NAMES[3],
            ScheduleName::DpmPlusPlus2m => &NAMES[4],
            ScheduleName::UniPc => &NAMES[5],
            ScheduleName::Lcm => &NAMES[6],
            ScheduleName::FlowMatchEuler => &NAMES[7],
        }
    }
}

impl fmt::Display for ScheduleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ScheduleName {
    type Err = UnknownSchedule;

    /// Any name that does not ask for a spacing of its own.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        find(&compact(text)).ok_or(UnknownSchedule)
    }
}

impl FromStr for ScheduleChoice {
    type Err = UnknownSchedule;

    /// Any name, with or without "Karras" behind it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = compact(text);
        if let Some(name) = find(&text) {
            return Ok(ScheduleChoice {
                name,
                karras: false,
            });
        }
        let name = text.strip_suffix("karras").and_then(find);
        match name {
            Some(name) if name.takes_karras() => Ok(ScheduleChoice { name, karras: true }),
            _ => Err(UnknownSchedule),
        }
    }
}

impl fmt::Display for ScheduleChoice {
    /// What the web UI writes into a picture's parameters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.label())?;
        if self.karras {
            f.write_str(" Karras")?;
        }
        Ok(())
    }
}

/// Writers differ in case, spaces, hyphens and underscores only.
fn compact(text: &str) -> String {
    text.chars()
        .filter(|letter| !matches!(letter, ' ' | '-' | '_'))
        .flat_map(char::to_lowercase)
        .collect()
}

fn find(text: &str) -> Option<ScheduleName> {
    NAMES
        .iter()
        .find(|names| {
            [names.wire, names.label, names.class]
                .iter()
                .any(|known| compact(known) == text)
                || names.aliases.contains(&text)
        })
        .map(|names| names.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_again() {
        for name in ScheduleName::ALL {
            for text in [name.as_str(), name.label(), name.class()] {
                assert_eq!(text.parse(), Ok(name), "{text}");
                assert_eq!(
                    text.parse(),
                    Ok(ScheduleChoice {
                        name,
                        karras: false
                    })
                );
            }
            for karras in [false, name.takes_karras()] {
                let choice = ScheduleChoice { name, karras };
                assert_eq!(choice.to_string().parse(), Ok(choice));
            }
        }
    }

    #[test]
    fn other_programs_spellings_are_understood() {
        for (text, name, karras) in [
            ("DPM++ 2M Karras", ScheduleName::DpmPlusPlus2m, true),
            ("dpmpp_2m_karras", ScheduleName::DpmPlusPlus2m, true),
            ("k_euler_a", ScheduleName::EulerAncestral, false),
            ("Euler Karras", ScheduleName::Euler, true),
            ("uni_pc", ScheduleName::UniPc, false),
        ] {
            assert_eq!(text.parse(), Ok(ScheduleChoice { name, karras }), "{text}");
        }
        for wrong in ["", "karras", "DDIM Karras", "euler karras karras", "heun"] {
            assert_eq!(
                wrong.parse::<ScheduleChoice>(),
                Err(UnknownSchedule),
                "{wrong}"
            );
        }
        assert!("euler karras".parse::<ScheduleName>().is_err());
    }
}
