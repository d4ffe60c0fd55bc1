//! Reads `rustls::Error`.

use rustls::Error;

use super::facts::TlsFacts;

pub(super) fn read(error: &Error) -> TlsFacts {
    match error {
        Error::AlertReceived(alert) => TlsFacts::Alert(u8::from(*alert)),
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented | Error::InvalidCertRevocationList(_) => {
            TlsFacts::Certificate
        }
        Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => TlsFacts::Foreign,
        _ => TlsFacts::Other,
    }
}
