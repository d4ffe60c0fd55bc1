//! The public types of a middleware: newtypes over the driver's service, future and response body.

/// Declares the service of a middleware, with its accessors.
macro_rules! middleware_service {
    ($(#[$doc:meta])* $service:ident [$($w:ident: $bound:path = $default:ty)?] $spec:ty, $make:ident $(: $clone:ident)?) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $service<S $(, $w: $bound = $default)?> {
            // to see the missing bound, write `ServiceExt::oneshot(service, request)`
            exchange: $crate::exchange::Exchange<S, $spec>,
        }

        impl<S $(, $w: $bound)?> $service<S $(, $w)?> {
            pub(crate) fn new(inner: S, config: impl Into<$crate::exchange::ConfigSource<$spec>>) -> Self
            $(where S: $clone)?
            {
                Self { exchange: $crate::exchange::Exchange::$make(inner, config) }
            }

            /// Returns the inner service.
            pub fn get_ref(&self) -> &S {
                self.exchange.get_ref()
            }

            /// Returns the inner service mutably.
            pub fn get_mut(&mut self) -> &mut S {
                self.exchange.get_mut()
            }

            /// Unwraps the inner service.
            pub fn into_inner(self) -> S {
                self.exchange.into_inner()
            }
        }
    };
}

/// Declares the future of a middleware.
macro_rules! middleware_future {
    (
        $(#[$doc:meta])* $future:ident<S, $b:ident $(, $w:ident: $bound:path)?> $spec:ty,
        $sent:ty where { $($request:tt)* }
    ) => {
        pin_project_lite::pin_project! {
            $(#[$doc])*
            #[derive(Debug)]
            #[must_use = "futures do nothing unless polled"]
            pub struct $future<S, $b $(, $w: $bound)?>
            where
                S: $crate::body::WrapBody<$sent>,
                $($request)*
            {
                #[pin]
                call: $crate::exchange::ExchangeFuture<S, $b, $spec>,
            }
        }

        impl<S, $b $(, $w: $bound)?> $future<S, $b $(, $w)?>
        where
            S: $crate::body::WrapBody<$sent>,
            $($request)*
        {
            #[inline]
            pub(crate) fn new(call: $crate::exchange::ExchangeFuture<S, $b, $spec>) -> Self {
                Self { call }
            }
        }
    };
}

/// Declares the response body of a middleware.
macro_rules! middleware_body {
    ($(#[$doc:meta])* $body:ident<$x:ident $(, $w:ident: $bound:path)?> $spec:ty, $inner:ty, $error:ty, { $($where:tt)* }) => {
        pin_project_lite::pin_project! {
            $(#[$doc])*
            #[derive(Debug)]
            pub struct $body<$x $(, $w: $bound)?> {
                #[pin]
                body: $crate::exchange::ExchangeBody<$inner, $spec>,
            }
        }

        impl<$x $(, $w: $bound)?> $crate::exchange::MakeBody<$crate::exchange::ExchangeBody<$inner, $spec>> for $body<$x $(, $w)?> {
            #[inline]
            fn make(body: $crate::exchange::ExchangeBody<$inner, $spec>) -> Self {
                Self { body }
            }
        }

        impl<$x $(, $w: $bound)?> http_body::Body for $body<$x $(, $w)?>
        where
            $($where)*
        {
            type Data = bytes::Bytes;
            type Error = $error;

            #[inline]
            fn poll_frame(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
                self.project().body.poll_frame(cx)
            }

            fn is_end_stream(&self) -> bool {
                self.body.is_end_stream()
            }

            fn size_hint(&self) -> http_body::SizeHint {
                self.body.size_hint()
            }
        }

        impl<$x $(, $w: $bound)?> From<bytes::Bytes> for $body<$x $(, $w)?> {
            fn from(bytes: bytes::Bytes) -> Self {
                Self { body: bytes.into() }
            }
        }

        impl<$x $(, $w: $bound)?> Default for $body<$x $(, $w)?> {
            fn default() -> Self {
                bytes::Bytes::new().into()
            }
        }
    };
}

/// Declares the service, future and response body of a middleware that sends requests once, as they are, and passes errors on.
macro_rules! passing_middleware {
    (
        $(#[$service_doc:meta])* $service:ident,
        $(#[$future_doc:meta])* $future:ident,
        $(#[$body_doc:meta])* $body:ident,
        $spec:ty
    ) => {
        $crate::exchange::middleware_service!($(#[$service_doc])* $service [] $spec, once);

        $crate::exchange::middleware_future!($(#[$future_doc])* $future<S, B> $spec, B where {});

        $crate::exchange::middleware_body! {
            $(#[$body_doc])* $body<X> $spec, X, Box<dyn std::error::Error + Send + Sync>,
            { X: http_body::Body<Data = bytes::Bytes>, X::Error: Into<Box<dyn std::error::Error + Send + Sync>>, }
        }

        impl<S, B, X, E> tower_service::Service<http::Request<B>> for $service<S>
        where
            S: $crate::body::WrapBody<B, Body = X, ServiceError = E>,
            X: http_body::Body<Data = bytes::Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
            E: 'static,
        {
            type Response = http::Response<$body<X>>;
            type Error = E;
            type Future = $future<S, B>;

            #[inline]
            fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), E>> {
                self.exchange.poll_ready::<B, X, E>(cx)
            }

            #[inline]
            fn call(&mut self, request: http::Request<B>) -> Self::Future {
                $future::new(self.exchange.call(request))
            }
        }

        impl<S, B, X, E> std::future::Future for $future<S, B>
        where
            S: $crate::body::WrapBody<B, Body = X, ServiceError = E>,
            X: http_body::Body<Data = bytes::Bytes>,
            X::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
            E: 'static,
        {
            type Output = Result<http::Response<$body<X>>, E>;

            #[inline]
            fn poll(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Self::Output> {
                self.project().call.poll_as(cx)
            }
        }
    };
}

/// Declares the spec of a middleware, with its free list.
macro_rules! middleware_spec {
    (
        $(#[$doc:meta])* $spec:ident,
        per_call = $call:ty, per_attempt = $attempt:ty, timeouts = $timeouts:ty, requests = $requests:ty, errors = $errors:ty
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) enum $spec {}

        impl $crate::exchange::Spec for $spec {
            type PerCall = $call;
            type PerAttempt = $attempt;
            type Timeouts = $timeouts;
            type Requests = $requests;
            type Errors = $errors;

            const WAITS: bool = false;
            const SPANS: bool = false;

            #[inline]
            fn spare_calls() -> &'static $crate::exchange::SpareCalls<Self> {
                $crate::free_list::free_list!(SPARE: std::pin::Pin<Box<$crate::exchange::ActiveCall<$spec>>>);
                &SPARE
            }
        }
    };
}

pub(crate) use {middleware_body, middleware_future, middleware_service, middleware_spec, passing_middleware};
