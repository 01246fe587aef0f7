//! Finds who answers a request: a fault, a refusal, or the collection that it is for.

use std::io;

use super::delivery::Delivery;
use super::encoding::Encoding;
use super::exchange::{Exchange, refuse_with};
use super::http::{Connection, Then};
use super::misbehave::commit;
use super::object::Object;
use super::options::Ask;
use super::request::Request;
use super::resource::Target;
use super::selector::Filter;
use super::shared::Shared;
use super::status::Status;
use super::watch::{Open, Quirks, refuse};
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
    let mut quirks = Quirks { encoding, gzip: compress && request.takes_gzip(), no_bookmark: false, end: None };
    if let Some(fault) = &fault
        && let Some(committed) = commit(connection, fault, &exchange, &mut quirks).await
    {
        return committed;
    }
    if token.is_some_and(|token| request.authorization != Some(format!("Bearer {token}"))) {
        return exchange.refuse(connection, &Status::of_code(401)).await;
    }
    if let Err(status) = negotiated {
        return exchange.refuse(connection, &status).await;
    }
    exchange.dispatch(connection, quirks).await
}

impl Exchange<'_> {
    async fn dispatch(&self, connection: &mut Connection, quirks: Quirks) -> io::Result<Then> {
        let request = self.request;
        match (request.method.as_str(), &self.target) {
            ("GET", Some(target)) => match target.name {
                Some(name) => self.object(connection, target, name).await,
                None => self.collection(connection, target, quirks).await,
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

    async fn collection(&self, connection: &mut Connection, target: &Target<'_>, quirks: Quirks) -> io::Result<Then> {
        let (mut filter, ask) = match self.asked(target) {
            Ok(asked) => asked,
            Err(status) => return self.refuse(connection, &status).await,
        };
        filter.namespace = target.namespace.map(str::to_owned);
        match ask {
            Ask::List(ask) => match list::find(self.shared, target.resource, &filter, &ask, self.request) {
                Ok(page) => {
                    let (gzip, metadata) = (self.request.takes_gzip(), list::metadata(&page, &filter));
                    list::send(connection, target.resource, self.encoding, gzip, &metadata, &page).await?;
                    Ok(Then::Reuse)
                }
                Err(status) => self.refuse(connection, &status).await,
            },
            Ask::Watch(ask) => match Open::new(self.shared, target.resource, filter, ask, quirks) {
                Ok(open) => open.run(connection).await,
                Err(status) => refuse(connection, self.encoding, &status).await.map(|()| Then::Reuse),
            },
        }
    }

    fn asked(&self, target: &Target<'_>) -> Result<(Filter, Ask), Status> {
        let param = |name| self.request.param(name).unwrap_or_default();
        let filter = Filter::parse(target.resource, &param("labelSelector"), &param("fieldSelector"))?;
        let serves = self.shared.state().serves;
        Ok((filter, Ask::of(self.request, serves)?))
    }
}
