//! Evidence collected from an error chain, link by link.

use std::error::Error;
use std::io;

use super::chain::Chain;
#[cfg(feature = "rustls")]
use super::facts::TlsFacts;
use super::facts::{ErrorFacts, IoFacts, TextFacts};
use crate::cause::Failure;

impl ErrorFacts {
    pub(super) fn collect(error: &(dyn Error + 'static)) -> Self {
        Self::default().and(error)
    }

    /// Collects the facts of an error from a connector of this crate.
    #[cfg(feature = "client")]
    pub(super) fn collect_connecting(error: &(dyn Error + 'static)) -> Self {
        Self { typed: true, ..Self::default() }.and(error)
    }

    fn and(self, error: &(dyn Error + 'static)) -> Self {
        let mut clues = self;
        for link in Chain::new(error) {
            clues.inspect(link);
            if clues.failure.is_some() {
                break;
            }
        }
        clues
    }

    fn inspect(&mut self, link: &(dyn Error + 'static)) {
        if let Some(failure) = link.downcast_ref::<Failure>() {
            self.failure = Some(failure.clone());
        } else if let Some(error) = link.downcast_ref::<io::Error>() {
            self.inspect_io(error);
        } else if let Some(error) = link.downcast_ref::<hyper::Error>() {
            self.hyper.get_or_insert_with(|| super::hyper::read(error));
        } else if link.is::<tokio::time::error::Elapsed>() || link.is::<tower::timeout::error::Elapsed>() {
            self.elapsed = true;
        } else if link.is::<tower::load_shed::error::Overloaded>() {
            self.text.get_or_insert(TextFacts::Overloaded);
        } else if !self.inspect_features(link) {
            self.look_at_client(link);
            super::error_strings::read(link, self);
        }
    }

    /// Inspects errors of hyper-util's client and connector, whose texts say more.
    #[cfg(feature = "client")]
    fn look_at_client(&mut self, link: &(dyn Error + 'static)) {
        use hyper_util::client::legacy;
        // the type's name is private
        type ConnectError = <legacy::connect::HttpConnector as tower_service::Service<http::Uri>>::Error;
        let client = link.downcast_ref::<legacy::Error>();
        if client.is_some_and(legacy::Error::is_connect) || link.is::<ConnectError>() {
            (self.connecting, self.typed) = (true, true);
        }
        // refused before a connection was looked up
        self.typed |= client.is_some_and(|error| error.to_string().contains("(UserAbsoluteUriRequired)"));
    }

    #[cfg(not(feature = "client"))]
    #[allow(clippy::unused_self)]
    fn look_at_client(&self, _: &(dyn Error + 'static)) {}

    fn inspect_io(&mut self, error: &io::Error) {
        let errno = error.raw_os_error();
        let told = errno.is_some() || !matches!(error.kind(), io::ErrorKind::Other);
        // the innermost specific kind wins: adaptors wrap in Other, rustls in InvalidData
        if told {
            self.io = Some(IoFacts { kind: error.kind(), errno });
        }
        if errno.is_none() {
            super::error_strings::read_io(error, self);
        }
    }

    #[cfg_attr(not(any(feature = "http2", feature = "rustls")), allow(unused_variables, clippy::unused_self))]
    fn inspect_features(&mut self, link: &(dyn Error + 'static)) -> bool {
        #[cfg(feature = "http2")]
        if let Some(error) = link.downcast_ref::<h2::Error>() {
            self.h2.get_or_insert_with(|| super::h2::read(error));
            return true;
        }
        #[cfg(feature = "rustls")]
        if let Some(error) = link.downcast_ref::<rustls::Error>() {
            self.tls.get_or_insert_with(|| read_tls(error));
            return true;
        }
        false
    }
}

#[cfg(feature = "rustls")]
fn read_tls(error: &rustls::Error) -> TlsFacts {
    use rustls::Error;
    match error {
        Error::AlertReceived(alert) => TlsFacts::Alert(u8::from(*alert)),
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented | Error::InvalidCertRevocationList(_) => {
            TlsFacts::Certificate
        }
        Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => TlsFacts::Foreign,
        _ => TlsFacts::Other,
    }
}
