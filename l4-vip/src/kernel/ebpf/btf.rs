//! The types of a map's key and value, which the kernel asks for where a map belongs to sockets (kernel documentation
//! `bpf/btf`): a word for the key, and an array of words for the value.
//!
//! Other maps are made without types, and nothing reads these but the kernel.

use std::io;
use std::os::fd::OwnedFd;

use super::sys;

/// Numbers of the types below.
pub const KEY: u32 = 1;
pub const VALUE: u32 = 2;

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HEADER_BYTES: u32 = 24;
const KIND_SHIFT: u32 = 24;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const WORD_BYTES: u32 = 4;
/// The first string is empty, and where types have no name.
const STRINGS: &[u8] = b"\0u32\0";
const NAME_OF_WORD: u32 = 1;

/// `value_bytes` is a multiple of 4.
pub fn of_words(value_bytes: u32) -> io::Result<OwnedFd> {
    // Name, kind, bytes, and then the number of bits.
    let word = [NAME_OF_WORD, KIND_INT << KIND_SHIFT, WORD_BYTES, 8 * WORD_BYTES];
    // Name, kind, nothing, and then the types of element and index, and how many elements.
    let array = [0, KIND_ARRAY << KIND_SHIFT, 0, KEY, KEY, value_bytes / WORD_BYTES];
    let types: Vec<u8> = word.iter().chain(&array).flat_map(|number| number.to_ne_bytes()).collect();
    let mut blob = MAGIC.to_ne_bytes().to_vec();
    blob.extend([VERSION, 0]);
    let n_bytes = types.len() as u32;
    for number in [HEADER_BYTES, 0, n_bytes, n_bytes, STRINGS.len() as u32] {
        blob.extend(number.to_ne_bytes());
    }
    blob.extend(types);
    blob.extend(STRINGS);
    sys::load_types(&blob)
}
