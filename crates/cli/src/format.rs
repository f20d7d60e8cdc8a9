//! The formats of output.

/// What `-w` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line per fact.
    Fields,
    /// One line of JSON.
    Json,
    /// The answer's bytes.
    Protobuf,
    /// For people.
    Simple,
    /// A drawn table.
    Table,
}

impl Format {
    /// The format of this name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "fields" => Format::Fields,
            "json" => Format::Json,
            "protobuf" => Format::Protobuf,
            "simple" => Format::Simple,
            "table" => Format::Table,
            _ => return None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Format::Fields => "fields",
            Format::Json => "json",
            Format::Protobuf => "protobuf",
            Format::Simple => "simple",
            Format::Table => "table",
        }
    }
}
