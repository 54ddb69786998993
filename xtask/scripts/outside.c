// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * A plugin of QEMU's TCG that counts a host's instructions apart from its guest's: `outside.rs` builds and reads it.
 *
 * What the emulator translates between a VMRUN and the instruction behind it, where #VMEXIT goes on, is the guest's. The
 * emulator keeps its translations for the two apart, so it is enough to know whose one is while it is made. A NOP with
 * MARK in its displacement has the counts so far written into the emulator's log.
 */
#include <stddef.h>
#include <stdint.h>

/* From QEMU's plugin API, version 4 (docs/devel/tcg-plugins). */
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct {
	struct qemu_plugin_scoreboard *score;
	size_t offset;
} qemu_plugin_u64;
typedef uint64_t qemu_plugin_id_t;
typedef void (*tb_callback)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);
typedef void (*insn_callback)(unsigned int vcpu, void *data);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_callback cb);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, insn_callback cb, int flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct qemu_plugin_insn *insn, int op, qemu_plugin_u64 entry,
							 uint64_t value);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t n);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *to, size_t size);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *insn);
struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t size);
uint64_t qemu_plugin_u64_sum(qemu_plugin_u64 entry);
void qemu_plugin_outs(const char *text);

#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = 4;

enum { NO_REGISTERS = 0, ADD = 0, VMRUN_LENGTH = 3, MARK_LENGTH = 8, SITES = 16 };
static const uint8_t VMRUN[VMRUN_LENGTH] = { 0x0f, 0x01, 0xd8 };
static const uint8_t MARK[MARK_LENGTH] = { 0x0f, 0x1f, 0x84, 0x00, 'h', 's', 'v', 0x01 };

enum { GUEST, KERNEL, USER, COUNTERS };
static qemu_plugin_u64 counters[COUNTERS];
static int in_guest;
/* Behind each VMRUN that was seen: as the emulator's own address of the instruction, which no guest shares. */
static const char *behind[SITES];

static void enter(unsigned int vcpu, void *data)
{
	in_guest = 1;
}

static void leave(unsigned int vcpu, void *data)
{
	in_guest = 0;
}

static char *decimal(char *to, uint64_t number)
{
	char digits[20];
	int n = 0;

	do
		digits[n++] = (char)('0' + number % 10);
	while (number /= 10);
	*to++ = ' ';
	while (n)
		*to++ = digits[--n];
	return to;
}

static void mark(unsigned int vcpu, void *data)
{
	char line[80] = "mark", *to = line + 4;

	for (int n = 0; n < COUNTERS; n++)
		to = decimal(to, qemu_plugin_u64_sum(counters[n]));
	*to++ = '\n';
	*to = 0;
	qemu_plugin_outs(line);
}

static int is(const struct qemu_plugin_insn *insn, const uint8_t *bytes, size_t size)
{
	uint8_t own[MARK_LENGTH] = { 0 };
	size_t n = qemu_plugin_insn_data(insn, own, size);

	for (size_t i = 0; i < size; i++)
		if (n != size || own[i] != bytes[i])
			return 0;
	return 1;
}

static int is_behind(const char *place)
{
	for (int n = 0; n < SITES; n++)
		if (place && behind[n] == place)
			return 1;
	return 0;
}

static void remember(const char *place)
{
	for (int n = 0; n < SITES && !is_behind(place); n++)
		if (!behind[n])
			behind[n] = place;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	for (size_t n = 0; n < qemu_plugin_tb_n_insns(tb); n++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, n);
		const char *place = qemu_plugin_insn_haddr(insn);
		int upper = (int64_t)qemu_plugin_insn_vaddr(insn) < 0;

		/* VMRUN ends a translation, so this is the first one's place. */
		if (n == 0 && is_behind(place)) {
			in_guest = 0;
			qemu_plugin_register_vcpu_insn_exec_cb(insn, leave, NO_REGISTERS, NULL);
		}
		qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(
			insn, ADD, counters[in_guest ? GUEST : upper ? KERNEL : USER], 1);
		if (in_guest)
			continue;
		if (is(insn, VMRUN, VMRUN_LENGTH)) {
			remember(place + VMRUN_LENGTH);
			qemu_plugin_register_vcpu_insn_exec_cb(insn, enter, NO_REGISTERS, NULL);
		} else if (is(insn, MARK, MARK_LENGTH)) {
			qemu_plugin_register_vcpu_insn_exec_cb(insn, mark, NO_REGISTERS, NULL);
		}
	}
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	for (int n = 0; n < COUNTERS; n++)
		counters[n].score = qemu_plugin_scoreboard_new(sizeof(uint64_t));
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
