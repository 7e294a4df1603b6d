//! Anonymous tokens: most registries want one even for what everybody may read.

use std::sync::{Arc, Mutex, PoisonError};

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};

use crate::http::{CONNECT_TIMEOUT, READ_TIMEOUT, USER_AGENT};
use crate::image::ImageRef;

/// The bearer token of one repository, shared by the connections to it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Token(Arc<Mutex<Option<String>>>);

impl Token {
    /// The token, if there is one yet.
    pub(super) fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set(&self, token: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
    }
}

/// Asks for a token for reading the repository. `None`: the registry gives none.
pub(super) async fn request(
    image: &ImageRef,
    host: &str,
) -> Result<Option<String>, oci_client::errors::OciDistributionError> {
    let client = oci_client::Client::try_from(ClientConfig {
        protocol: if image.is_local() {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        },
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: USER_AGENT,
        ..ClientConfig::default()
    })?;
    // Only registry and repository matter for a token.
    let reference = Reference::with_tag(
        host.to_owned(),
        image.repository().to_owned(),
        "latest".to_owned(),
    );
    client
        .auth(
            &reference,
            &RegistryAuth::Anonymous,
            RegistryOperation::Pull,
        )
        .await
}
