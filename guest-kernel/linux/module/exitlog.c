// SPDX-License-Identifier: GPL-2.0
/*
 * Asks the Exitvisor underneath for this machine's VM exits, from kernel space:
 * when it is loaded, and on each read of /proc/exitlog.
 *
 * The interface is described in docs/guest-interface.md; the names are those of
 * the crate exit-abi, whose tests compare the numbers.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitops.h>
#include <linux/io.h>
#include <linux/irqflags.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <asm/processor.h>

/* The gate port. What is written is kept per vCPU until the command comes. */
#define EXITLOG_GATE_LOW	0x0e10
#define EXITLOG_GATE_HIGH	0x0e14
#define EXITLOG_GATE_COMMAND	0x0e18

#define EXITLOG_REGISTER_CPUID		1
#define EXITLOG_REGISTER_HYPERCALL	2
#define EXITLOG_WITHDRAW		3

#define EXITLOG_DONE	0
#define EXITLOG_FULL	1

/* Leaves that are always the same; INFO names the four others by their low bytes. */
#define EXITLOG_DISCOVERY	0x4fffff00
#define EXITLOG_MAP		0x4fffff02
#define EXITLOG_INFO		0x4fffff03
#define EXITLOG_PREFIX		0x4fffff00
#define EXITLOG_VERSION		1

/* So many reasons a map has room for. */
#define EXITLOG_REASONS		128

#define EXITLOG_HYPERCALL	0x283

struct exitlog_regs {
	u32 eax, ebx, ecx, edx;
};

/* The instructions that are gates: labels within the functions below. */
extern const u8 exitlog_cpuid_site[];
extern const u8 exitlog_vmcall_site[];
extern const u8 exitlog_vmmcall_site[];

/* The leaves, in the order in which INFO packs them. */
static u32 exitlog_total_exits;
static u32 exitlog_total_cycles;
static u32 exitlog_exits_of;
static u32 exitlog_cycles_of;

static bool exitlog_has_hypercall;

/* One copy, so that each label is one address. */
static noinline __noclone struct exitlog_regs exitlog_cpuid(u32 leaf, u32 ecx)
{
	struct exitlog_regs r = { .eax = leaf, .ecx = ecx };

	asm volatile("exitlog_cpuid_site: cpuid"
		     : "+a" (r.eax), "=b" (r.ebx), "+c" (r.ecx), "=d" (r.edx));
	return r;
}

static noinline __noclone u64 exitlog_vmcall(u64 number)
{
	asm volatile("exitlog_vmcall_site: vmcall" : "+a" (number) : : "memory");
	return number;
}

static noinline __noclone u64 exitlog_vmmcall(u64 number)
{
	asm volatile("exitlog_vmmcall_site: vmmcall" : "+a" (number) : : "memory");
	return number;
}

/* Each of the two instructions is one vendor's. */
static bool exitlog_is_amd(void)
{
	return boot_cpu_data.x86_vendor == X86_VENDOR_AMD ||
	       boot_cpu_data.x86_vendor == X86_VENDOR_HYGON;
}

static const u8 *exitlog_hypercall_site(void)
{
	return exitlog_is_amd() ? exitlog_vmmcall_site : exitlog_vmcall_site;
}

static u64 exitlog_hypercall(u64 number)
{
	return exitlog_is_amd() ? exitlog_vmmcall(number) : exitlog_vmcall(number);
}

static u64 exitlog_exits(u32 leaf, u32 reason)
{
	struct exitlog_regs r = exitlog_cpuid(leaf, reason);

	return r.eax | (u64)r.ebx << 32;
}

static u64 exitlog_cycles(u32 leaf, u32 reason)
{
	struct exitlog_regs r = exitlog_cpuid(leaf, reason);

	return r.ecx | (u64)r.ebx << 32;
}

/* Gives a command about an instruction, and returns its outcome. */
static u32 exitlog_gate(u32 command, const u8 *site)
{
	unsigned long address = (unsigned long)site;
	unsigned long flags;
	u32 outcome;

	local_irq_save(flags);
	outl(lower_32_bits(address), EXITLOG_GATE_LOW);
	outl(upper_32_bits(address), EXITLOG_GATE_HIGH);
	outl(command, EXITLOG_GATE_COMMAND);
	outcome = inl(EXITLOG_GATE_COMMAND);
	local_irq_restore(flags);
	return outcome;
}

static int exitlog_show(struct seq_file *m, void *unused)
{
	struct exitlog_regs r;
	u64 exits, cycles;
	u32 map[EXITLOG_REASONS / 32];
	u32 reason;

	exits = exitlog_exits(exitlog_total_exits, 0);
	cycles = exitlog_cycles(exitlog_total_cycles, 0);
	seq_printf(m, "CPUID(0x%08X), exits= %llu, cycles spent in exit= %llu\n",
		   exitlog_total_exits, exits, cycles);

	r = exitlog_cpuid(EXITLOG_MAP, 0);
	map[0] = r.eax;
	map[1] = r.ebx;
	map[2] = r.ecx;
	map[3] = r.edx;
	for (reason = 0; reason < EXITLOG_REASONS; reason++) {
		if (!(map[reason / 32] & BIT(reason % 32)))
			continue;
		exits = exitlog_exits(exitlog_exits_of, reason);
		cycles = exitlog_cycles(exitlog_cycles_of, reason);
		seq_printf(m, "exit reason %u, exits= %llu, cycles= %llu\n",
			   reason, exits, cycles);
	}

	if (exitlog_has_hypercall) {
		u64 name = exitlog_hypercall(EXITLOG_HYPERCALL);

		seq_printf(m, "hypercall 0x%x= 0x%016llx \"%.8s\"\n",
			   EXITLOG_HYPERCALL, name, (char *)&name);
	} else {
		seq_puts(m, "hypercall: no gate was left for it\n");
	}
	return 0;
}

/* Whether Exitvisor is underneath, and which leaf asks what: both by any CPUID. */
static int __init exitlog_discover(void)
{
	struct exitlog_regs r;
	u32 signature[3];

	cpuid(EXITLOG_DISCOVERY, &r.eax, &signature[0], &signature[1],
	      &signature[2]);
	if (memcmp(signature, "ExitvisorABI", sizeof(signature))) {
		pr_err("no Exitvisor underneath: nobody to ask\n");
		return -ENODEV;
	}
	cpuid(EXITLOG_INFO, &r.eax, &r.ebx, &r.ecx, &r.edx);
	if (r.eax != EXITLOG_VERSION) {
		pr_err("Exitvisor speaks version %u of the interface: not asked\n",
		       r.eax);
		return -ENODEV;
	}
	exitlog_total_exits = EXITLOG_PREFIX | (r.edx & 0xff);
	exitlog_total_cycles = EXITLOG_PREFIX | (r.edx >> 8 & 0xff);
	exitlog_exits_of = EXITLOG_PREFIX | (r.edx >> 16 & 0xff);
	exitlog_cycles_of = EXITLOG_PREFIX | r.edx >> 24;
	return 0;
}

static int __init exitlog_init(void)
{
	u64 exits, cycles;
	u32 outcome;
	int error;

	error = exitlog_discover();
	if (error)
		return error;
	outcome = exitlog_gate(EXITLOG_REGISTER_CPUID, exitlog_cpuid_site);
	if (outcome != EXITLOG_DONE) {
		if (outcome == EXITLOG_FULL)
			pr_err("no slot is left: Exitvisor has four gates for all of this machine\n");
		else
			pr_err("Exitvisor does not take the gate: outcome %u\n",
			       outcome);
		return -EBUSY;
	}
	outcome = exitlog_gate(EXITLOG_REGISTER_HYPERCALL,
			       exitlog_hypercall_site());
	exitlog_has_hypercall = outcome == EXITLOG_DONE;

	if (!proc_create_single("exitlog", 0400, NULL, exitlog_show)) {
		error = -ENOMEM;
		goto withdraw;
	}
	exits = exitlog_exits(exitlog_total_exits, 0);
	cycles = exitlog_cycles(exitlog_total_cycles, 0);
	pr_info("CPUID(0x%08X), exits= %llu, cycles spent in exit= %llu\n",
		exitlog_total_exits, exits, cycles);
	if (exitlog_has_hypercall)
		pr_info("hypercall 0x%x= 0x%016llx\n", EXITLOG_HYPERCALL,
			exitlog_hypercall(EXITLOG_HYPERCALL));
	return 0;

withdraw:
	if (exitlog_has_hypercall)
		exitlog_gate(EXITLOG_WITHDRAW, exitlog_hypercall_site());
	exitlog_gate(EXITLOG_WITHDRAW, exitlog_cpuid_site);
	return error;
}

static void __exit exitlog_exit(void)
{
	remove_proc_entry("exitlog", NULL);
	if (exitlog_has_hypercall)
		exitlog_gate(EXITLOG_WITHDRAW, exitlog_hypercall_site());
	exitlog_gate(EXITLOG_WITHDRAW, exitlog_cpuid_site);
}

module_init(exitlog_init);
module_exit(exitlog_exit);
MODULE_DESCRIPTION("Asks Exitvisor for this machine's VM exits");
MODULE_LICENSE("GPL");
