//! What goes on besides a row's fault: the daemon's other troubles, shorter limits, and what the world does while a process stands at
//! the point.

/// How often the incumbent's resume fails, when its handover is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// The first time.
    Once,
    /// Three times in a row.
    Thrice,
    /// Whenever it is tried.
    Always,
}

impl Times {
    pub(super) const ALL: [Self; 3] = [Self::Once, Self::Thrice, Self::Always];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Thrice => "thrice",
            Self::Always => "always",
        }
    }
}

/// What an order allows the handover to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limits {
    /// What is configured.
    AsConfigured,
    /// A drain that is over before a silence means death.
    ShortGrace,
    /// The same of the whole handover.
    ShortDeadline,
}

/// What befalls the data directory's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// The name is a link, which is switched to another directory.
    LinkSwitched,
    /// The directory is renamed: its name is gone.
    Renamed,
    /// The directory is renamed, and a copy of it is put in its place.
    Copied,
}

impl Moved {
    pub(super) const ALL: [Self; 3] = [Self::LinkSwitched, Self::Renamed, Self::Copied];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::LinkSwitched => "link-switched",
            Self::Renamed => "renamed",
            Self::Copied => "copied",
        }
    }
}

/// What the world does besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// Nothing.
    Nothing,
    /// While the process stands at the point, the incumbent is killed.
    IncumbentDies,
    /// While the process stands at the point, the data directory's name comes to mean another one, or none, and it does so again what
    /// it meant when the handover has come to something.
    Moves(Moved),
    /// The same between this handover and the next one.
    MovesAfterwards(Moved),
}

impl Meanwhile {
    /// Whether it happens while the process stands at the point.
    pub(super) fn is_at_the_point(self) -> bool {
        matches!(self, Self::IncumbentDies | Self::Moves(_))
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::IncumbentDies => "+incumbent-dies".to_owned(),
            Self::Moves(moved) => format!("+{}", moved.name()),
            Self::MovesAfterwards(moved) => format!("+{}-afterwards", moved.name()),
        }
    }
}
