//! How a struct that crosses the border between kernel and host is declared.

/// Declares a `#[repr(C)]` struct without padding and remembers its fields as text in `LAYOUT`.
macro_rules! shared_struct {
    ($(#[$meta:meta])* pub struct $name:ident { $( $(#[$field_meta:meta])* pub $field:ident : $type:ty ),+ $(,)? }
     size = $size:literal) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ::zerocopy::IntoBytes, ::zerocopy::FromBytes, ::zerocopy::Immutable, ::zerocopy::KnownLayout)]
        pub struct $name { $( $(#[$field_meta])* pub $field: $type, )+ }

        impl $name {
            /// Field names and types in order, as they enter [`crate::layout::LAYOUT_HASH`].
            pub const LAYOUT: &'static str =
                concat!(stringify!($name), "{", $( stringify!($field), ":", stringify!($type), "," ),+, "}");
        }

        const _: () = assert!(::core::mem::size_of::<$name>() == $size);
    };
}
pub(crate) use shared_struct;
