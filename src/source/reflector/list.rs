//! Plain lists, page by page.

use std::time::Duration;

use proxier::track::{Change, Object};
use tokio::time::timeout;
use tracing::error;

use super::Reflector;
use super::failure::Failure;
use super::resource::Page;
use super::transport::{Chunks, Transport};
use crate::client::Verb;
use crate::source::Sink;
use crate::source::wire::{ListDecoder, ListMeta};

/// How long the response head of a page may take; the API server itself ends requests after a minute.
const PAGE_HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the body of a page may pause. It has no total limit: a slow list that progresses completes.
const PAGE_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

impl<T: Transport> Reflector<T> {
    /// Lists all objects into the sink: at least as new as the last version seen, or the newest if the server no longer
    /// has that one.
    pub(super) async fn list(&mut self) -> Result<(), Failure> {
        match self.list_from(self.version.for_list()).await {
            Err(failure) if self.version.lost(&failure) => self.list_from(self.version.for_list()).await,
            result => result,
        }
    }

    async fn list_from(&mut self, resource_version: String) -> Result<(), Failure> {
        // With a version the watch cache serves only requests without a limit; others go to etcd.
        let limited = matches!(resource_version.as_str(), "" | "0");
        let mut page = Page { limited, continue_token: String::new(), resource_version: resource_version.clone() };
        self.sink.mark(&Change::Listing(self.resource.kind));
        let (mut version, mut in_part) = (None, false);
        loop {
            match self.page(&page).await {
                Ok(ListMeta { resource_version, continue_token, unreadable }) => {
                    if let Some((count, error)) = unreadable {
                        let kind = self.resource.kind.name();
                        error!("Skipped {count} {kind}s of a list, objects missing from it are kept: {error}");
                        in_part = true;
                    }
                    let version = version.get_or_insert(resource_version);
                    if continue_token.is_empty() {
                        self.listed(std::mem::take(version), in_part);
                        return Ok(());
                    }
                    // A version is not allowed with a token, which contains one.
                    page = Page { limited: true, continue_token, resource_version: String::new() };
                }
                Err(failure) if failure.is_expired() && !page.continue_token.is_empty() => {
                    // etcd compacted the version of the first page: everything in one answer, as client-go's pager does.
                    page = Page { resource_version: resource_version.clone(), ..Page::default() };
                    (version, in_part) = (None, false);
                    self.sink.mark(&Change::Listing(self.resource.kind));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Whether the server's newest version is the last one seen or a later one. Otherwise it may have lost what came
    /// after a backup of its etcd, and a watch from that version stays silent.
    ///
    /// Asks for one object at most.
    pub(super) async fn is_version_known(&mut self) -> bool {
        let path = self.resource.newest();
        let Ok(newest) = self.decode_page(&path, &mut |_, _| ()).await else { return false };
        let numbers = newest.resource_version.parse::<u64>().ok().zip(self.version.last().parse::<u64>().ok());
        numbers.is_some_and(|(newest, seen)| newest >= seen)
    }

    /// Lists one page: each object goes to the sink as soon as it is decoded.
    async fn page(&mut self, page: &Page) -> Result<ListMeta, Failure> {
        self.decode_page(&self.resource.list(page), &mut Sink::apply).await
    }

    async fn decode_page(
        &mut self,
        path: &str,
        each: &mut (dyn FnMut(&mut Sink, Object) + Send),
    ) -> Result<ListMeta, Failure> {
        let mut answer = self.send(Verb::List, path, PAGE_HEAD_TIMEOUT).await?;
        let mut decoder = ListDecoder::new(self.resource.kind, answer.encoding);
        let stalled = |_| Failure::Stalled("bytes of a list", PAGE_IDLE_TIMEOUT);
        while let Some(chunk) = timeout(PAGE_IDLE_TIMEOUT, answer.body.chunk()).await.map_err(stalled)? {
            let bytes = chunk.map_err(Failure::Request)?;
            decoder.push(&bytes, &mut |object| each(&mut self.sink, object)).map_err(Failure::Wire)?;
        }
        decoder.finish().map_err(Failure::Wire)
    }
}
