//! The entry of the `waymark` binary. It does nothing but choose the allocator and hand over to the library.

fn main() {}
