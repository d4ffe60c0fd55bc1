//! The properties of a cause: category, replay safety, prospect of a retry.

/// Declares an enum whose variants have a word for logs, labels and JSON.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* #[cfg_attr(feature = "serde", serde(rename = $word))] $variant,)*
        }

        impl $name {
            /// The word for logs, labels and JSON.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
pub(super) use words;

words! {
    /// The area to check first, by the categories of common 502 checklists.
    Category {
        /// The backend is down or crashed.
        BackendDown = "backend_down",
        /// The backend or the gateway is overloaded.
        Overload = "overload",
        /// The gateway is configured wrongly: address, port, protocol, limits, headers.
        ProxyConfig = "proxy_config",
        /// A firewall or another filter blocks the traffic.
        Blocked = "blocked",
        /// DNS or routing is wrong.
        DnsRouting = "dns_routing",
        /// The backend's code is slow or responds incorrectly.
        SlowOrBroken = "slow_or_broken",
        /// The client disconnected or stalled.
        Client = "client",
        /// The gateway itself failed.
        Gateway = "gateway",
        /// The failure could not be classified.
        Unknown = "unknown",
    }
}

words! {
    /// Whether the request may be sent again (RFC 9110 section 9.2.2, RFC 9113 section 8.7).
    Replay {
        /// Proven that no server started to process it: any method may be retried.
        NotSent = "not_sent",
        /// It may have been processed: only idempotent methods may be retried.
        IdempotentOnly = "idempotent_only",
        /// A retry would be wrong or pointless.
        Never = "never",
    }
}

impl Replay {
    /// The replay safety without evidence from the wire.
    pub(crate) const fn inferred(self) -> Self {
        match self {
            Self::NotSent => Self::IdempotentOnly,
            other => other,
        }
    }
}

/// Whether a retry would help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prospect {
    /// Yes, immediately and at the same peer.
    SamePeer,
    /// Yes, at another peer.
    OtherPeer,
    /// Yes, after a delay.
    AfterDelay,
    /// No.
    Futile,
}
