//! Dispatches a request to a fault, a refusal, or the requested collection.

use std::io;

use super::delivery::Delivery;
use super::encoding::Encoding;
use super::exchange::{Exchange, refuse_with};
use super::http::{Connection, Then};
use super::inject::inject;
use super::object::Object;
use super::options::CollectionQuery;
use super::request::Request;
use super::resource::Target;
use super::selector::Filter;
use super::shared::Shared;
use super::status::Status;
use super::watch::{OpenWatch, WatchFaults, send_error};
use super::{list, write};

pub(super) async fn answer(connection: &mut Connection, shared: &Shared, request: &Request) -> io::Result<Then> {
    shared.record(request);
    connection.may_answer().await?;
    connection.delivery = Delivery::default();
    let target = Target::of_path(&request.path);
    let (fault, offered, token, compress) = {
        let mut state = shared.state();
        let fault = state.take_fault(request, target.as_ref());
        (fault, state.media_types, state.token.clone(), state.compress_streamed_lists)
    };
    let negotiated = Encoding::negotiate(&request.accept, offered, request.is_watch());
    let encoding = negotiated.as_ref().copied().unwrap_or(Encoding::Json);
    let exchange = Exchange { shared, request, target, encoding };
    let mut watch_faults =
        WatchFaults { encoding, gzip: compress && request.takes_gzip(), no_bookmark: false, end: None };
    if let Some(fault) = &fault
        && let Some(injected) = inject(connection, fault, &exchange, &mut watch_faults).await
    {
        return injected;
    }
    if token.is_some_and(|token| request.authorization != Some(format!("Bearer {token}"))) {
        return exchange.refuse(connection, &Status::of_code(401)).await;
    }
    if let Err(status) = negotiated {
        return exchange.refuse(connection, &status).await;
    }
    exchange.dispatch(connection, watch_faults).await
}

impl Exchange<'_> {
    async fn dispatch(&self, connection: &mut Connection, watch_faults: WatchFaults) -> io::Result<Then> {
        let request = self.request;
        match (request.method.as_str(), &self.target) {
            ("GET", Some(target)) => match target.name {
                Some(name) => self.object(connection, target, name).await,
                None => self.collection(connection, target, watch_faults).await,
            },
            ("GET", None) => self.fixed(connection).await,
            ("POST", Some(target)) if target.name.is_none() => {
                let created = write::create(&mut self.shared.state().store, target, &request.body);
                self.written(connection, target, 201, created).await
            }
            ("PATCH", Some(target)) => {
                let name = target.name.unwrap_or_default();
                let patched = write::patch(&mut self.shared.state().store, target, name, &request.body);
                self.written(connection, target, 200, patched).await
            }
            ("POST", None) => self.refuse(connection, &Status::of_code(404)).await,
            _ => self.refuse(connection, &Status::of_code(405)).await,
        }
    }

    async fn refuse(&self, connection: &mut Connection, status: &Status) -> io::Result<Then> {
        refuse_with(connection, status, self.encoding).await
    }

    async fn written(
        &self,
        connection: &mut Connection,
        target: &Target<'_>,
        code: u16,
        outcome: Result<Object, Status>,
    ) -> io::Result<Then> {
        self.shared.announce();
        match outcome {
            Ok(object) => self.send(connection, target, code, &object).await,
            Err(status) => self.refuse(connection, &status).await,
        }
    }

    async fn object(&self, connection: &mut Connection, target: &Target<'_>, name: &str) -> io::Result<Then> {
        let key = (target.namespace.unwrap_or_default().to_owned(), name.to_owned());
        let found = self.shared.state().store.get(target.resource, &key).cloned();
        match found {
            Some(object) => self.send(connection, target, 200, &object).await,
            None => self.refuse(connection, &Status::not_found(target.resource.plural, name)).await,
        }
    }

    async fn send(
        &self,
        connection: &mut Connection,
        target: &Target<'_>,
        code: u16,
        object: &Object,
    ) -> io::Result<Then> {
        let mut body = Vec::new();
        match self.encoding {
            Encoding::Json => object.write(target.resource, &mut body),
            Encoding::Protobuf => object.write_enveloped(target.resource, &mut body),
        }
        connection.respond(code, self.encoding.media_type(), "", &body).await?;
        Ok(Then::Reuse)
    }

    async fn fixed(&self, connection: &mut Connection) -> io::Result<Then> {
        let (media_type, body) = match self.request.path.as_str() {
            "/healthz" | "/livez" | "/readyz" => ("text/plain; charset=utf-8", "ok"),
            "/version" => {
                ("application/json", r#"{"major":"1","minor":"36","gitVersion":"v1.36.2","platform":"linux/amd64"}"#)
            }
            _ => return self.refuse(connection, &Status::of_code(404)).await,
        };
        connection.respond(200, media_type, "", body.as_bytes()).await?;
        Ok(Then::Reuse)
    }

    async fn collection(
        &self,
        connection: &mut Connection,
        target: &Target<'_>,
        watch_faults: WatchFaults,
    ) -> io::Result<Then> {
        let (mut filter, options) = match self.query(target) {
            Ok(query) => query,
            Err(status) => return self.refuse(connection, &status).await,
        };
        filter.namespace = target.namespace.map(str::to_owned);
        match options {
            CollectionQuery::List(options) => {
                match list::find(self.shared, target.resource, &filter, &options, self.request) {
                    Ok(page) => {
                        let (gzip, metadata) = (self.request.takes_gzip(), list::metadata(&page, &filter));
                        list::send(connection, target.resource, self.encoding, gzip, &metadata, &page).await?;
                        Ok(Then::Reuse)
                    }
                    Err(status) => self.refuse(connection, &status).await,
                }
            }
            CollectionQuery::Watch(options) => {
                match OpenWatch::new(self.shared, target.resource, filter, options, watch_faults) {
                    Ok(open) => open.run(connection).await,
                    Err(status) => send_error(connection, self.encoding, &status).await.map(|()| Then::Reuse),
                }
            }
        }
    }

    fn query(&self, target: &Target<'_>) -> Result<(Filter, CollectionQuery), Status> {
        let param = |name| self.request.param(name).unwrap_or_default();
        let filter = Filter::parse(target.resource, &param("labelSelector"), &param("fieldSelector"))?;
        let features = self.shared.state().features;
        Ok((filter, CollectionQuery::parse(self.request, features)?))
    }
}
