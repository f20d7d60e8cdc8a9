//! Finding endpoints by DNS SRV records.

/// The endpoints that a domain's records name.
pub fn endpoints(_domain: &str, _service: &str, _secure_only: bool) -> Result<Vec<String>, String> {
    Err("not yet".to_owned())
}
