//! An assembler for the eBPF instructions that the programs use: registers, labels, loads and stores, calls.
//!
//! It checks nothing that the kernel's verifier checks; a jump to a label that was never placed is a fault of the
//! caller's program and stops its tests. Instruction set: kernel documentation `bpf/standardization/instruction-set`.

use std::os::fd::{AsRawFd, BorrowedFd};

/// A register. R0 holds results, R1 to R5 arguments (lost in every call), R6 to R9 survive calls, R10 is the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    #[expect(dead_code, reason = "no helper that is called takes five arguments")]
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// Width of a load or store.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Width {
    /// 32 bits.
    Word = 0x00,
    /// 64 bits.
    Double = 0x18,
}

/// Arithmetic on 64 bits.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Op {
    Add = 0x00,
    Sub = 0x10,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    /// Unsigned remainder.
    Rem = 0x90,
}

/// Condition of a jump, unsigned.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum If {
    Eq = 0x10,
    Greater = 0x20,
    GreaterEq = 0x30,
    NotEq = 0x50,
    Less = 0xa0,
}

/// Functions of the kernel (`enum bpf_func_id`).
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    KtimeNs = 5,
    Random = 7,
    SocketCookie = 46,
    SetSockOpsFlags = 59,
    SkStorageGet = 107,
    SkStorageDelete = 108,
    NetnsCookie = 122,
    SetRetval = 187,
}

/// A place in the program that jumps lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

const CLASS_LDX: u8 = 0x01;
const CLASS_ST: u8 = 0x02;
const CLASS_STX: u8 = 0x03;
const CLASS_JMP: u8 = 0x05;
const CLASS_JMP32: u8 = 0x06;
const CLASS_ALU64: u8 = 0x07;
const MODE_MEM: u8 = 0x60;
const MODE_ATOMIC: u8 = 0xc0;
const MOV: u8 = 0xb0;
const FROM_REG: u8 = 0x08;
const JUMP_ALWAYS: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD_IMM64: u8 = 0x18;
/// `BPF_PSEUDO_MAP_FD`: the immediate is the descriptor of a map.
const MAP_FD: u8 = 1;

#[derive(Debug, Default)]
pub struct Asm {
    code: Vec<[u8; 8]>,
    /// Index of the instruction after the label, when it has been placed.
    labels: Vec<Option<usize>>,
    /// Jumps whose distance is not known before the end.
    jumps: Vec<(usize, Label)>,
}

impl Asm {
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    pub fn mov(&mut self, to: Reg, from: Reg) {
        self.emit(CLASS_ALU64 | MOV | FROM_REG, to, from, 0, 0);
    }

    pub fn mov_imm(&mut self, to: Reg, value: i32) {
        self.emit(CLASS_ALU64 | MOV, to, Reg::R0, 0, value);
    }

    pub fn op(&mut self, op: Op, to: Reg, with: Reg) {
        self.emit(CLASS_ALU64 | op as u8 | FROM_REG, to, with, 0, 0);
    }

    pub fn op_imm(&mut self, op: Op, to: Reg, value: i32) {
        self.emit(CLASS_ALU64 | op as u8, to, Reg::R0, 0, value);
    }

    /// `to = *(base + offset)`
    pub fn load(&mut self, width: Width, to: Reg, base: Reg, offset: i16) {
        self.emit(CLASS_LDX | MODE_MEM | width as u8, to, base, offset, 0);
    }

    /// `*(base + offset) = from`
    pub fn store(&mut self, width: Width, base: Reg, offset: i16, from: Reg) {
        self.emit(CLASS_STX | MODE_MEM | width as u8, base, from, offset, 0);
    }

    pub fn store_imm(&mut self, width: Width, base: Reg, offset: i16, value: i32) {
        self.emit(CLASS_ST | MODE_MEM | width as u8, base, Reg::R0, offset, value);
    }

    /// `*(base + offset) += from`, all 64 bits at once.
    pub fn add_atomic(&mut self, base: Reg, offset: i16, from: Reg) {
        self.emit(CLASS_STX | MODE_ATOMIC | Width::Double as u8, base, from, offset, 0);
    }

    pub fn load_map(&mut self, to: Reg, map: BorrowedFd<'_>) {
        self.code.push(instruction(LOAD_IMM64, to as u8, MAP_FD, 0, map.as_raw_fd()));
        self.code.push([0; 8]);
    }

    pub fn call(&mut self, helper: Helper) {
        self.emit(CALL, Reg::R0, Reg::R0, 0, helper as i32);
    }

    pub fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(JUMP_ALWAYS, Reg::R0, Reg::R0, 0, 0);
    }

    /// Compares all 64 bits with a sign-extended number.
    pub fn jump_if(&mut self, left: Reg, condition: If, right: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(CLASS_JMP | condition as u8, left, Reg::R0, 0, right);
    }

    /// Compares the low 32 bits with a number.
    pub fn jump_if_word(&mut self, left: Reg, condition: If, right: u32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(CLASS_JMP32 | condition as u8, left, Reg::R0, 0, right.cast_signed());
    }

    pub fn jump_if_reg(&mut self, left: Reg, condition: If, right: Reg, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(CLASS_JMP | condition as u8 | FROM_REG, left, right, 0, 0);
    }

    /// Ends the program with this result.
    pub fn exit(&mut self, result: i32) {
        self.mov_imm(Reg::R0, result);
        self.emit(EXIT, Reg::R0, Reg::R0, 0, 0);
    }

    /// The program, with every jump's distance filled in.
    pub fn finish(mut self) -> Vec<[u8; 8]> {
        for (at, label) in self.jumps {
            let target = self.labels[label.0].expect("every label that is jumped to is placed");
            let distance = i16::try_from(target as isize - at as isize - 1).expect("programs are short");
            self.code[at][2..4].copy_from_slice(&distance.to_ne_bytes());
        }
        self.code
    }

    fn emit(&mut self, code: u8, destination: Reg, source: Reg, offset: i16, immediate: i32) {
        self.code.push(instruction(code, destination as u8, source as u8, offset, immediate));
    }
}

/// `struct bpf_insn`. The two registers share a byte, and which half is whose follows the host's byte order.
fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let registers =
        if cfg!(target_endian = "little") { source << 4 | destination } else { destination << 4 | source };
    let ([o0, o1], [i0, i1, i2, i3]) = (offset.to_ne_bytes(), immediate.to_ne_bytes());
    [code, registers, o0, o1, i0, i1, i2, i3]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against what `clang -target bpfel` and `llvm-objdump` make of the same statements.
    #[test]
    #[cfg(target_endian = "little")]
    fn instructions_are_encoded_as_the_kernel_reads_them() {
        let mut asm = Asm::default();
        let end = asm.label();
        asm.mov(Reg::R6, Reg::R1);
        asm.load(Width::Word, Reg::R7, Reg::R6, 36);
        asm.jump_if(Reg::R7, If::NotEq, 6, end);
        asm.store_imm(Width::Word, Reg::R10, -24, 0);
        asm.store(Width::Double, Reg::R10, -8, Reg::R7);
        asm.op_imm(Op::ShiftLeft, Reg::R7, 16);
        asm.op(Op::Rem, Reg::R0, Reg::R7);
        asm.add_atomic(Reg::R0, 8, Reg::R1);
        asm.call(Helper::SetRetval);
        asm.place(end);
        asm.exit(1);
        let words: Vec<u64> = asm.finish().into_iter().map(u64::from_be_bytes).collect();
        assert_eq!(
            words,
            [
                0xbf16_0000_0000_0000,
                0x6167_2400_0000_0000,
                0x5507_0600_0600_0000,
                0x620a_e8ff_0000_0000,
                0x7b7a_f8ff_0000_0000,
                0x6707_0000_1000_0000,
                0x9f70_0000_0000_0000,
                0xdb10_0800_0000_0000,
                0x8500_0000_bb00_0000,
                0xb700_0000_0100_0000,
                0x9500_0000_0000_0000,
            ]
        );
    }
}
