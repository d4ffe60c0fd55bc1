//! Reads `rustls::Error`.

use rustls::Error;

use super::clues::Tls;

pub(super) fn read(error: &Error) -> Tls {
    match error {
        Error::AlertReceived(alert) => Tls::Alert(u8::from(*alert)),
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented | Error::InvalidCertRevocationList(_) => {
            Tls::Certificate
        }
        Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => Tls::Foreign,
        _ => Tls::Other,
    }
}
