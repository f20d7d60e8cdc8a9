//! This member's state as a bbolt file, on its way to a client.

use api::SnapshotSource;
use bytes::Bytes;
use state::{Error, Image, ImageError, Pieces};

/// Begins to write the file. Goes through the whole state once, to find out how long the file will be.
pub(crate) fn stream(image: Image) -> Result<ImageStream, Error> {
    let mut pieces = image.into_pieces();
    let total_bytes = pieces.total_bytes().map_err(failed)?;
    Ok(ImageStream { total_bytes, pieces })
}

/// etcd's `Maintenance.Hash`.
pub(crate) fn hash(image: &Image) -> Result<u32, Error> {
    image.hash().map_err(failed)
}

fn failed(error: ImageError) -> Error {
    Error::Internal(format!("snapshot: {}", crate::chain(&error)))
}

/// A bbolt file on its way out.
#[derive(Debug)]
pub(crate) struct ImageStream {
    total_bytes: u64,
    pieces: Pieces,
}

impl SnapshotSource for ImageStream {
    fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let piece = self.pieces.next().transpose();
        piece.map_err(|error| Error::Internal(format!("snapshot: {}", crate::chain(&error))))
    }
}
