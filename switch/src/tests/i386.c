/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The world switch of i386 in a 32-bit process: the handler of the faults plays the processor. Without a library, so
 * that nothing but a compiler is needed; i386.rs builds and runs it, and passes the offsets.
 *
 * FS is the per-CPU segment there. While it is the guest's it is null, so that a use of it faults and fails the test.
 */
typedef unsigned int u32;
typedef unsigned long long u64;

enum { AX, CX, DX, BX, SP, BP, SI, DI };
enum op { WRMSR = 1, RDMSR, VMLOAD, VMRUN, VMSAVE, ENTRY, RSB, UNTRAIN, RETURN, FIXUP };
enum { FS_SLOT = 1, EIP_SLOT = 14 };
/* Where the machine registers are in the signal's context, in the order of their encoding. */
static const int slot[8] = { 11, 10, 9, 8, 7, 6, 5, 4 };

#define check(what) do { if (!(what)) fail(__LINE__); } while (0)

static u32 syscall3(u32 n, u32 a, u32 b, u32 c)
{
	u32 r;
	asm volatile("int $0x80" : "=a"(r) : "a"(n), "b"(a), "c"(b), "d"(c) : "memory");
	return r;
}

static char number[16];

/* Ends the process; the line goes to standard error. */
static void fail(u32 line)
{
	int n = sizeof number;
	number[--n] = '\n';
	for (; line; line /= 10)
		number[--n] = '0' + line % 10;
	syscall3(4, 2, (u32)(number + n), sizeof number - n);
	syscall3(1, 1, 0, 0);
	__builtin_unreachable();
}

/* What the assembly refers to. */
struct { u32 bytes[64]; } hsave_cpu_data;
u64 x86_spec_ctrl_current;
unsigned char hsave_rebooting;
u32 hsave_vcpu_run(void *vcpu, u32 flags);

asm(".text\n"
    ".globl hsave_mitigate_entry\nhsave_mitigate_entry: int3\nat_entry: jmp hsave_mitigate_entry_done\n"
    ".globl hsave_mitigate_exit_rsb\nhsave_mitigate_exit_rsb: int3\nat_rsb: mov $-1, %eax\n"
    "cmp %eax, %esp\njmp hsave_mitigate_exit_rsb_done\n"
    ".globl hsave_mitigate_exit_untrain\nhsave_mitigate_exit_untrain: int3\nat_untrain: mov $-1, %eax\n"
    "mov $-1, %ecx\nmov $-1, %edx\njmp hsave_mitigate_exit_untrain_done\n"
    ".globl __x86_return_thunk\n__x86_return_thunk: int3\nat_return: ret\n"
    "restorer: mov $173, %eax\nint $0x80\n"
    /* call_it(vcpu, flags, after): the assembly with a pattern in what a callee preserves. */
    "call_it: push %ebx\npush %ebp\npush %esi\npush %edi\npush %ecx\nmov %esp, 16(%ecx)\n"
    "mov $0x1b1b, %ebx\nmov $0x1d1d, %ebp\nmov $0x1616, %esi\nmov $0x1717, %edi\n"
    "call hsave_vcpu_run\n"
    "mov (%esp), %ecx\nmov %ebx, (%ecx)\nmov %ebp, 4(%ecx)\nmov %esi, 8(%ecx)\nmov %edi, 12(%ecx)\n"
    "sub %esp, 16(%ecx)\npop %ecx\npop %edi\npop %esi\npop %ebp\npop %ebx\nret\n"
    ".globl _start\n_start: and $-16, %esp\ncall start\n");
extern char at_entry[], at_rsb[], at_untrain[], at_return[], restorer[];
void call_it(void *vcpu, u32 flags, u32 *after);
extern int __start___ex_table[], __stop___ex_table[];

static u32 host_fs;
static struct { unsigned char bytes[4096]; } vmcb, second, area;
static struct { unsigned char bytes[256]; } vcpu;
static struct { u32 op, a; u64 v; } trace[32];
static u32 length, svm_count, failing, flags_now;
static u64 msr, leaves;
static u32 seen[8], at_ret[8];

static u32 in(int n) { return 0x11110000 | n; }
static u32 out(int n) { return 0xeeee0000 | n; }

static void record(u32 op, u32 a, u64 v)
{
	check(length < 32);
	trace[length].op = op;
	trace[length].a = a;
	trace[length++].v = v;
}

static u32 fixup(u32 eip)
{
	for (int *e = __start___ex_table; e < __stop___ex_table; e += 3)
		if ((u32)e + e[0] == eip)
			return (u32)(e + 1) + e[1];
	fail(__LINE__);
	return 0;
}

__attribute__((used)) static void handler(u32 signal, void *info, u32 *context)
{
	u32 *regs = context + 5, eip = regs[EIP_SLOT];
	const unsigned char *i = (void *)eip;
	u32 eax = regs[slot[AX]], ecx = regs[slot[CX]];
	(void)info;
	if (signal == 5) {
		u32 op = eip == (u32)at_entry ? ENTRY : eip == (u32)at_rsb ? RSB : eip == (u32)at_untrain ? UNTRAIN : RETURN;
		check(op != RETURN || eip == (u32)at_return);
		for (int n = 0; n < 8 && op == RETURN; n++)
			at_ret[n] = regs[slot[n]];
		record(op, 0, 0);
		return;
	}
	check(i[0] == 0x0f);
	if (i[1] == 0x01) {
		u32 op = i[2] == 0xd8 ? VMRUN : i[2] == 0xda ? VMLOAD : VMSAVE;
		check(i[2] == 0xd8 || i[2] == 0xda || i[2] == 0xdb);
		if (failing >> svm_count++ & 1) {
			record(FIXUP, 0, 0);
			regs[EIP_SLOT] = fixup(eip);
			return;
		}
		record(op, eax, 0);
		if (op == VMLOAD)
			regs[FS_SLOT] = eax == (u32)&area ? host_fs : 0;
		for (int n = 1; n < 8 && op == VMRUN; n++)
			if (n != SP) {
				seen[n] = regs[slot[n]];
				regs[slot[n]] = out(n);
			}
		if (op == VMRUN && flags_now)
			msr = leaves;
		regs[EIP_SLOT] += 3;
		return;
	}
	check(ecx == 0x48);
	if (i[1] == 0x30) {
		msr = eax | (u64)regs[slot[DX]] << 32;
		record(WRMSR, ecx, msr);
	} else {
		check(i[1] == 0x32);
		record(RDMSR, ecx, 0);
		regs[slot[AX]] = (u32)msr;
		regs[slot[DX]] = msr >> 32;
	}
	regs[EIP_SLOT] += 2;
}

static u32 at;
static void expect(u32 op, u32 a, u64 v)
{
	check(at < length && trace[at].op == op && trace[at].a == a && trace[at].v == v);
	at++;
}

static void svm(u32 n, u32 op, void *page)
{
	if (failing >> n & 1)
		expect(FIXUP, 0, 0);
	else
		expect(op, (u32)page, 0);
}

static void one(u32 flags, u64 host, u64 guest, u64 left, u32 fails)
{
	u32 after[5], *v = (void *)&vcpu;
	int ran = !(fails & 2);
	for (int n = 0; n < 64; n++)
		v[n] = 0;
	for (int n = 0; n < 8; n++)
		v[REGS / 4 + 2 * n] = in(n);
	v[VMCB01 / 4] = (u32)&vmcb;
	v[VMCB / 4] = (u32)&second;
	v[SPEC_CTRL / 4] = guest;
	hsave_cpu_data.bytes[HSAVE_PA / 4] = (u32)&area;
	x86_spec_ctrl_current = msr = host;
	hsave_rebooting = fails != 0;
	leaves = left, failing = fails, flags_now = flags;
	length = svm_count = at = 0;
	call_it(&vcpu, flags, after);

	check(after[0] == 0x1b1b && after[1] == 0x1d1d && after[2] == 0x1616 && after[3] == 0x1717 && after[4] == 0);
	if (guest != host)
		expect(WRMSR, 0x48, guest);
	svm(0, VMLOAD, &vmcb);
	expect(ENTRY, 0, 0);
	svm(1, VMRUN, &second);
	svm(2, VMSAVE, &vmcb);
	svm(3, VMLOAD, &area);
	expect(RSB, 0, 0);
	if (flags)
		expect(RDMSR, 0x48, 0);
	guest = !flags || !ran ? guest : left;
	if (guest != host)
		expect(WRMSR, 0x48, host);
	expect(UNTRAIN, 0, 0);
	expect(RETURN, 0, 0);
	check(at == length && msr == host && v[SPEC_CTRL / 4] == guest && v[FAULTED / 4] == (fails != 0));
	check(!at_ret[AX] && !at_ret[CX] && !at_ret[DX]);
	for (int n = 1; n < 8; n++)
		if (n != SP) {
			check(!ran || seen[n] == in(n));
			check(v[REGS / 4 + 2 * n] == (ran ? out(n) : in(n)) && v[REGS / 4 + 2 * n + 1] == 0);
		}
}

__attribute__((used)) void start(void)
{
	static const u32 values[] = { 0, 1, 0xffffffff, 4 };
	u32 action[5] = { (u32)handler, 0x44000004, (u32)restorer, 0, 0 };
	u32 fs[4] = { -1, 0, 0xfffff, 0x51 };
	u32 cases = 0;
	for (u32 signal = 4; signal <= 11; signal++)
		if (signal == 4 || signal == 5 || signal == 11) {
			u32 r;
			asm volatile("int $0x80" : "=a"(r) : "a"(174), "b"(signal), "c"(action), "d"(0), "S"(8) : "memory");
			check(r == 0);
		}
	check(syscall3(243, (u32)fs, 0, 0) == 0);
	host_fs = fs[0] * 8 + 3;
	asm volatile("mov %0, %%fs" : : "r"(host_fs));
	for (u32 flags = 0; flags < 2; flags++)
		for (u32 h = 0; h < 4; h++)
			for (u32 g = 0; g < 4; g++)
				for (u32 l = 0; l < (flags ? 4 : 1); l++)
					for (u32 fails = 0; fails < 16; fails++)
						/* As in matrix.rs: a host that cannot be loaded over a guest. */
						if ((fails & 9) != 8) {
							one(flags, values[h], values[g], values[l], fails);
							cases++;
						}
	check(cases == 16 * (12 + 4 * 12));
	syscall3(1, 0, 0, 0);
}
