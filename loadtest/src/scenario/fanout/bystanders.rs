//! Connections beside the fan-out that get nothing: with no subscription, or with some that nothing matches.
//!
//! Nobody reads for them while the fan-out runs, so it must be over before the relay misses a pong.

use crate::client::{Connection, RelayMessage, Target, message};
use crate::events::Random;
use crate::report::Violations;
use crate::scenario::lost;
use crate::scenario::mix::LiveFilter;
use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

/// Of the authors that they subscribe to and nobody is.
const SEED: u64 = 0x6279_7374;

/// See the module.
pub struct Bystanders(Vec<Connection>);

impl Bystanders {
    /// Connects `count` of them, each with so many live subscriptions.
    ///
    /// # Errors
    /// A connection or a subscription that is refused.
    pub fn open(
        target: &Target,
        count: u32,
        subscriptions: u32,
        live_filter: LiveFilter,
        since: u64,
    ) -> anyhow::Result<Self> {
        let mut random = Random::new(SEED);
        let mut open = |number: usize| -> anyhow::Result<Connection> {
            let mut connection = Connection::open(target, number)?;
            for subscription in 0..subscriptions {
                let nobody = json!({"authors": [faster_hex::hex_string(&random.bytes32())]});
                let name = subscription.to_string();
                let timeout = target.connect_timeout;
                let stored =
                    live_filter.subscribe(&mut connection, &name, &nobody, since, timeout)?;
                ensure!(stored == 0, "{stored} events of nobody");
            }
            Ok(connection)
        };
        let connections = (0..count as usize)
            .map(|number| open(number).with_context(|| format!("bystander {number}")))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self(connections))
    }

    /// Reads what has come for them, which must be no event and no end.
    ///
    /// # Errors
    /// The poll fails.
    pub fn judge(self, violations: &mut Violations) -> anyhow::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        for (number, mut connection) in self.0.into_iter().enumerate() {
            let at_once = Timespec::default();
            if poll(&mut [PollFd::new(&connection, PollFlags::IN)], Some(&at_once))? == 0 {
                continue;
            }
            let received = connection.receive(&mut buffer, |text| {
                if let Ok(RelayMessage::Event { .. } | RelayMessage::Closed { .. }) =
                    message::parse(text)
                {
                    let text = || format!("bystander {number}: {}", String::from_utf8_lossy(text));
                    violations.add("delivery_unasked", text);
                }
            });
            if let Err(why) = received {
                lost(violations, "bystander", number, &why);
            }
        }
        Ok(())
    }
}
