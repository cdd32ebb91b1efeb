/* Says hello without a C library: write(2) and exit_group(2) by number. */
static const char text[] =
	"\n"
	"Hello from Berth!\n"
	"This message shows that your engine makes and runs containers.\n"
	"\n"
	"What happened:\n"
	" 1. The client asked the engine for a container of the image hello-world.\n"
	" 2. The engine made it, ran the one program in it, and kept what it wrote.\n"
	" 3. The client showed you that output.\n"
	"\n"
	"Try next a shell in a Debian:\n"
	"    berth library build debian\n"
	"    berth run -it debian bash\n"
	"\n";

static long call(long number, long a, long b, long c)
{
	long result;
#if defined(__x86_64__)
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
#else
#error "hello.c knows the system calls of x86-64 only"
#endif
	return result;
}

void _start(void)
{
	call(1, 1, (long)text, sizeof(text) - 1);
	call(231, 0, 0, 0);
}
