//! What the service tells people and scripts: the objects of `--json` and of the admin socket. The field names are an
//! interface; the tests below hold them.

use std::path::PathBuf;
use std::time::Duration;

use crate::outcome::OldProcess;
use handoff_proto::HandoffId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The end of one `upgrade`, also of one that was refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HandoverReport {
    /// The handover's name; none if it was not tried.
    pub handoff_id: Option<String>,
    /// Whether the new process serves.
    pub committed: bool,
    /// Why not, in one line.
    pub abort_reason: Option<String>,
    /// What is known of the process that served when the order came; none if nothing was tried, or nobody was there to see it.
    #[serde(default)]
    pub incumbent: Option<OldProcess>,
    /// The process that served when the order came.
    pub old_pid: Option<u32>,
    /// The successor, if one was started.
    pub new_pid: Option<u32>,
    /// The epoch of the lease afterwards; none without a data directory.
    pub epoch: Option<u64>,
    /// How long each part took.
    pub timings_ms: TimingsMs,
}

/// Durations in milliseconds, to the microsecond. A part that was not reached is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TimingsMs {
    /// Starting the successor, up to its greeting.
    pub spawn: f64,
    /// Its start-up before the drain.
    pub warm: f64,
    /// `PrepareHandoff` sent to `Drained` received.
    pub drain: f64,
    /// `SealRequest` sent to `SealComplete` received.
    pub seal: f64,
    /// `Begin` sent to `Ready` received.
    pub begin_to_ready: f64,
    /// The whole handover.
    pub total: f64,
    /// `PrepareHandoff` sent to `Ready` received: the time in which nobody served.
    pub pause: f64,
}

/// A duration as the reports print it.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// What the service does right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// The daemon was started and does not answer on its control socket yet, or it is on its way back from a handover and has not
    /// said that it serves.
    Starting,
    /// The daemon serves.
    Serving,
    /// A handover is under way.
    HandingOver,
    /// The daemon left and will be started again after a pause.
    BackingOff,
    /// The daemon was told to leave, and the service follows it.
    Stopping,
}

impl ServiceState {
    /// As in the JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::HandingOver => "handing_over",
            Self::BackingOff => "backing_off",
            Self::Stopping => "stopping",
        }
    }
}

/// The answer to `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// What the service does right now.
    pub state: ServiceState,
    /// The supervisor's own pid.
    pub supervisor_pid: u32,
    /// The daemon, if one lives.
    pub incumbent: Option<IncumbentStatus>,
    /// The handover under way, if one is.
    pub handover: Option<HandoverStatus>,
    /// The sockets that the service owns.
    pub listeners: Vec<ListenerStatus>,
    /// The last handover that this supervisor tried.
    pub last_handover: Option<HandoverReport>,
}

/// The daemon that serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncumbentStatus {
    /// Its pid.
    pub pid: u32,
    /// What it said of its build: as it is if that is printable UTF-8, else in hex. None before it answered.
    pub build_id: Option<String>,
    /// Since when it serves, in milliseconds since the Unix epoch: as the lease has it, else when the supervisor saw it.
    pub since_unix_ms: u64,
    /// The lease's epoch; none without a data directory.
    pub epoch: Option<u64>,
}

/// A handover under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverStatus {
    /// Its name, once it has one.
    pub handoff_id: Option<String>,
    /// What is being done.
    pub phase: String,
    /// The successor, once it was started.
    pub successor_pid: Option<u32>,
    /// How far the seal is, where the daemon reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<SealStatus>,
}

/// How far a seal of several shards is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealStatus {
    /// Shards that are sealed.
    pub shards_sealed: u32,
    /// Shards in all.
    pub shards_total: u32,
    /// The last revision sealed.
    pub last_revision: u64,
}

/// One socket of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Where it listens, with the port that the kernel chose.
    pub addr: String,
}

/// A build id for people: as it is if that is printable UTF-8, else in hex.
pub fn build_id_text(build_id: &[u8]) -> String {
    match std::str::from_utf8(build_id) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => build_id.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// One line that a client sends: an order to the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Hand over to a new process. Answered by events and a [`HandoverReport`].
    Upgrade {
        /// Its binary, absolute; left out: the configured one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        binary: Option<PathBuf>,
        /// The bound on the handover, as `25s`; left out: the configured one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<DurationText>,
        /// The bound on the drain, as `25s`; left out: the configured one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drain_grace: Option<DurationText>,
    },
    /// Hand over to the build that served before this one. Answered as `Upgrade` is.
    Rollback {},
    /// Answered by a [`ServiceStatus`].
    Status {},
    /// Stop the daemon and the service. Answered by events and a [`Stopped`] when the daemon is gone.
    Stop {},
}

/// One line ahead of the answer. A line with the key `event` is never the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A handover is about to begin: nothing was done before this line. If the service says no more, the lease in the data
    /// directory tells what came of it.
    Ordered {
        /// Its name, as the lease and the history will have it.
        handoff_id: HandoffId,
        /// The process that serves.
        old_pid: u32,
        /// When that process started, in clock ticks after boot (proc_pid_stat(5)).
        old_start_time: u64,
        /// Where the lease is; none if the service does not know, or if the path is no text.
        data_dir: Option<PathBuf>,
        /// The bound on the handover from the order to drain.
        deadline_ms: u64,
    },
    /// A handover has come this far.
    Phase {
        /// How far.
        phase: String,
        /// The handover.
        handoff_id: Option<String>,
        /// The successor, once it was started.
        successor_pid: Option<u32>,
        /// Milliseconds since the order.
        after_ms: u64,
    },
    /// The daemon seals: so many of its shards are done. Only of a daemon that has several and reports it.
    SealProgress {
        /// Shards that are sealed.
        shards_sealed: u32,
        /// Shards in all.
        shards_total: u32,
        /// The last revision sealed.
        last_revision: u64,
    },
    /// The handover is over; its report is the next line.
    Finished {
        /// As of `handoff upgrade`: 0 committed, 2 aborted after the successor was started, 3 not tried, 4 another handover is
        /// under way.
        exit_code: u8,
    },
    /// The daemon was told to leave.
    Stopping {},
}

/// The answer to `stop`: the daemon is gone, and the supervisor ends right after this line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Always true.
    pub stopped: bool,
    /// The supervisor that ends.
    pub supervisor_pid: u32,
}

/// The answer to a line that is no order, or to one that could not be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong, in one line.
    pub error: String,
}

/// A hundred years: several of them fit into the nanoseconds of a clock, and nobody means more than this.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// A duration as people write it, on the command line, in the configuration and in an order: `250ms`, `25s`, `5m`. People write
/// "no limit" as a number that no clock can count to: one of more than a hundred years means a hundred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurationText(pub Duration);

impl std::str::FromStr for DurationText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(duration) => Ok(Self(duration.min(LONGEST))),
            Err(error) => Err(format!("\"{text}\" is no duration ({error}); write 250ms, 25s or 5m")),
        }
    }
}

impl Serialize for DurationText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};

    use super::*;

    fn report() -> HandoverReport {
        HandoverReport {
            handoff_id: Some("67e55044-10b1-426f-9247-bb680e5fe0c8".into()),
            committed: true,
            abort_reason: None,
            incumbent: Some(OldProcess::Replaced),
            old_pid: Some(10),
            new_pid: Some(11),
            epoch: Some(7),
            timings_ms: TimingsMs { spawn: 1.5, pause: 0.25, ..TimingsMs::default() },
        }
    }

    fn report_json() -> serde_json::Value {
        json!({
            "handoff_id": "67e55044-10b1-426f-9247-bb680e5fe0c8", "committed": true, "abort_reason": null,
            "incumbent": "replaced", "old_pid": 10, "new_pid": 11, "epoch": 7,
            "timings_ms": {"spawn": 1.5, "warm": 0.0, "drain": 0.0, "seal": 0.0, "begin_to_ready": 0.0, "total": 0.0,
                "pause": 0.25},
        })
    }

    #[test]
    fn a_handover_is_reported_with_exactly_these_fields() {
        assert_eq!(to_value(report()).unwrap(), report_json());
        let order = serde_json::to_string(&HandoverReport::default()).unwrap();
        assert!(
            order.starts_with(r#"{"handoff_id":null,"committed":false,"abort_reason":null,"incumbent":null,"old_pid""#),
            "{order}"
        );
    }

    #[test]
    fn the_status_has_exactly_these_fields() {
        let status = ServiceStatus {
            state: ServiceState::HandingOver,
            supervisor_pid: 1,
            incumbent: Some(IncumbentStatus { pid: 2, build_id: Some("v1".into()), since_unix_ms: 3, epoch: Some(4) }),
            handover: Some(HandoverStatus {
                handoff_id: Some("x".into()),
                phase: "draining".into(),
                successor_pid: Some(5),
                seal: None,
            }),
            listeners: vec![ListenerStatus { name: "http".into(), addr: "127.0.0.1:80".into() }],
            last_handover: Some(report()),
        };
        let expected = json!({
            "state": "handing_over", "supervisor_pid": 1,
            "incumbent": {"pid": 2, "build_id": "v1", "since_unix_ms": 3, "epoch": 4},
            "handover": {"handoff_id": "x", "phase": "draining", "successor_pid": 5},
            "listeners": [{"name": "http", "addr": "127.0.0.1:80"}],
            "last_handover": report_json(),
        });
        assert_eq!(to_value(&status).unwrap(), expected);
        assert_eq!(serde_json::from_value::<ServiceStatus>(expected).unwrap(), status);
    }

    #[test]
    fn a_state_is_named_alike_for_people_and_in_json() {
        use ServiceState::{BackingOff, HandingOver, Serving, Starting, Stopping};
        for state in [Starting, Serving, HandingOver, BackingOff, Stopping] {
            assert_eq!(to_value(state).unwrap(), json!(state.name()));
        }
    }

    #[test]
    fn the_first_line_of_a_handover_has_all_that_is_needed_without_us() {
        let event = Event::Ordered {
            handoff_id: HandoffId::from_bytes([0x11; 16]),
            old_pid: 10,
            old_start_time: 99,
            data_dir: Some("/d".into()),
            deadline_ms: 300_000,
        };
        let expected = json!({
            "event": "ordered", "handoff_id": "11111111-1111-1111-1111-111111111111", "old_pid": 10, "old_start_time": 99,
            "data_dir": "/d", "deadline_ms": 300_000,
        });
        assert_eq!(to_value(event).unwrap(), expected);
    }

    #[test]
    fn orders_are_read_as_documented() {
        let read = |text: &str| serde_json::from_str::<Request>(text);
        let plain = Request::Upgrade { binary: None, deadline: None, drain_grace: None };
        assert_eq!(read(r#"{"cmd":"upgrade"}"#).unwrap(), plain);
        assert_eq!(
            read(r#"{"cmd":"upgrade","binary":"/b/d","deadline":"25s","drain_grace":"250ms"}"#).unwrap(),
            Request::Upgrade {
                binary: Some("/b/d".into()),
                deadline: Some(DurationText(Duration::from_secs(25))),
                drain_grace: Some(DurationText(Duration::from_millis(250))),
            }
        );
        assert_eq!(read(r#"{"cmd":"status"}"#).unwrap(), Request::Status {});
        assert_eq!(read(r#"{"cmd":"stop"}"#).unwrap(), Request::Stop {});
    }

    #[test]
    fn what_is_no_order_is_refused_by_name() {
        let error = |text: &str| serde_json::from_str::<Request>(text).unwrap_err().to_string();
        assert!(error(r#"{"cmd":"fly"}"#).contains("fly"));
        assert!(error(r#"{"cmd":"status","verbose":1}"#).contains("verbose"));
        assert!(error(r#"{"cmd":"upgrade","deadline":"soon"}"#).contains("write 250ms, 25s or 5m"));
        assert!(error("{}").contains("cmd"));
    }

    #[test]
    fn a_build_id_is_text_where_it_can_be() {
        assert_eq!(build_id_text(b"v1.2"), "v1.2");
        assert_eq!(build_id_text(&[0xff, 0x01]), "ff01");
        assert_eq!(build_id_text(b"a\nb"), "610a62");
    }

    #[test]
    fn a_duration_that_no_clock_can_count_to_is_a_hundred_years_wherever_it_is_written() {
        for text in ["18446744073709551615s", "101years"] {
            assert_eq!(text.parse::<DurationText>().unwrap().0, LONGEST);
            let order = json!({ "cmd": "upgrade", "drain_grace": text });
            let Ok(Request::Upgrade { drain_grace: Some(grace), .. }) = serde_json::from_value::<Request>(order) else {
                panic!("{text} is no order");
            };
            assert_eq!(grace.0, LONGEST);
        }
        assert_eq!("99years".parse::<DurationText>().unwrap().0, Duration::from_secs(99 * 31_557_600));
        assert!("99999999999999999999s".parse::<DurationText>().unwrap_err().contains("write 250ms"));
    }

    #[test]
    fn durations_are_printed_to_the_microsecond() {
        assert_eq!(milliseconds(Duration::from_nanos(1_234_999)), 1.234);
    }
}
