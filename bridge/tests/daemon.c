/*
 * A stand-in for Bacula's File Daemon: it loads the plugin, gives it a daemon's functions, and makes the daemon's calls in
 * the daemon's order, as it is told on standard input. What the plugin does is written to standard output.
 *
 * One order a line, its words separated by tabs; one answer a line, the same way, in which %xx stands for a byte that is
 * not printable. tests/bridge has the scenarios.
 */

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../abi.h"

enum {
	VARIABLES = 32,
	MOST_CATALOGUED = 64,
	MOST_WORDS = 16
};

static struct plugin_info *information;
static struct plugin_functions *plugin;
static struct bacula_context context;

static char *texts[VARIABLES];
static int32_t numbers[VARIABLES];
static bool is_number[VARIABLES];

struct catalogued {
	char name[512];
	struct stat statp;
	bool is_seen;
};
static struct catalogued catalogue[MOST_CATALOGUED];
static size_t catalogue_count;
static bool has_catalogue;
static int outstanding;         /* what the plugin was given by malloc and did not free */

static char *out_directory;
static int file_number;
static int32_t read_size = 65536;
static int stop_reading_after = -1;
static int spoiled;             /* which packet is given a wrong size, by letter */

/* Cancelling from another thread, once the calls of one kind have come so far. */
static char cancel_point[32];
static int cancel_countdown;
static int cancel_delay;
static char cancel_file[4096];
static pthread_t canceller;
static bool is_cancelling;

static void
say(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	vprintf(format, list);
	va_end(list);
	fflush(stdout);
}

static void
say_text(const char *text)
{
	putchar('\t');
	for (; text != NULL && *text != '\0'; text++) {
		if ((unsigned char)*text < ' ' || *text == '%' || *text == 0x7F)
			printf("%%%02x", (unsigned char)*text);
		else
			putchar(*text);
	}
}

/* The daemon's functions. */

static enum rc
register_events(struct bacula_context *ctx, ...)
{
	(void)ctx;
	return (RC_OK);
}

static enum rc
get_value(struct bacula_context *ctx, int variable, void *value)
{
	if (ctx == NULL || variable < 0 || variable >= VARIABLES)
		return (RC_ERROR);
	if (is_number[variable])
		*(int32_t *)value = numbers[variable];
	else if (texts[variable] != NULL)
		*(char **)value = texts[variable];
	return (RC_OK);
}

static struct catalogued *
find(const char *name)
{
	for (size_t i = 0; i < catalogue_count; i++)
		if (strcmp(catalogue[i].name, name) == 0)
			return (&catalogue[i]);
	return (NULL);
}

static enum rc
set_value(struct bacula_context *ctx, int variable, void *value)
{
	struct catalogued *file;

	(void)ctx;
	if (variable != VARIABLE_FILE_SEEN)
		return (RC_OK);
	if (!has_catalogue)
		return (RC_ERROR);
	if ((file = find(value)) != NULL)
		file->is_seen = true;
	printf("seen");
	say_text(value);
	say("\n");
	return (RC_OK);
}

static enum rc
job_message(struct bacula_context *ctx, const char *file, int line, int type, int64_t mtime, const char *format, ...)
{
	char text[2000];
	va_list list;

	(void)file;
	(void)line;
	(void)mtime;
	va_start(list, format);
	vsnprintf(text, sizeof(text), format, list);
	va_end(list);
	printf("message\t%d", type);
	say_text(text);
	say("\n");
	if (type == MESSAGE_FATAL && ctx != NULL)
		numbers[VARIABLE_JOB_STATUS] = 'f';
	return (RC_OK);
}

static enum rc
debug_message(struct bacula_context *ctx, const char *file, int line, int level, const char *format, ...)
{
	(void)ctx;
	(void)file;
	(void)line;
	(void)level;
	(void)format;
	return (RC_OK);
}

static void *
give_memory(struct bacula_context *ctx, const char *file, int line, size_t size)
{
	(void)ctx;
	(void)file;
	(void)line;
	outstanding++;
	return (malloc(size));
}

static void
take_memory(struct bacula_context *ctx, const char *file, int line, void *memory)
{
	(void)ctx;
	(void)file;
	(void)line;
	outstanding--;
	free(memory);
}

static enum rc
refuse(const char *function)
{
	say("called\t%s\n", function);
	return (RC_ERROR);
}

static enum rc
check_changes(struct bacula_context *ctx, struct save_packet *packet)
{
	(void)ctx;
	(void)packet;
	return (refuse("checkChanges"));
}

static enum rc
get_accurate_attribs(struct bacula_context *ctx, struct accurate_packet *packet)
{
	struct catalogued *file = has_catalogue ? find(packet->fname) : NULL;

	if (file == NULL)
		return (RC_OK);
	packet->statp = file->statp;
	packet->seen = file->is_seen;
	packet->checksum = give_memory(ctx, __FILE__, __LINE__, 8);
	strcpy(packet->checksum, "abc");
	return (RC_SEEN);
}

static struct bacula_info daemon_information = {.size = sizeof(struct bacula_info), .version = INTERFACE_VERSION};
static struct bacula_functions functions = {.size = sizeof(struct bacula_functions), .version = INTERFACE_VERSION,
    .register_events = register_events, .get_value = get_value, .set_value = set_value, .job_message = job_message,
    .debug_message = debug_message, .malloc = give_memory, .free = take_memory, .check_changes = check_changes,
    .get_accurate_attribs = get_accurate_attribs};

/* Cancelling. */

static void
set_cancelled(void)
{
	__atomic_store_n(&numbers[VARIABLE_IS_CANCELED], 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&numbers[VARIABLE_JOB_STATUS], 'A', __ATOMIC_SEQ_CST);
}

static void *
cancel_later(void *nothing)
{
	struct timespec delay = {.tv_sec = cancel_delay / 1000, .tv_nsec = (long)(cancel_delay % 1000) * 1000000};
	struct bacula_event event = {.type = EVENT_CANCEL};

	(void)nothing;
	/* A moment, or when a backend says by a file that it is where it should be. */
	while (cancel_file[0] != '\0' && access(cancel_file, F_OK) != 0)
		usleep(1000);
	nanosleep(&delay, NULL);
	plugin->handle_event(&context, &event, NULL);
	set_cancelled();
	return (NULL);
}

/* Before a call into the plugin. */
static void
reach(const char *point)
{
	if (strcmp(point, cancel_point) != 0 || --cancel_countdown != 0)
		return;
	is_cancelling = pthread_create(&canceller, NULL, cancel_later, NULL) == 0;
}

/* The daemon sets the job's status after it has told the plugin: whoever asks for the status waits for that. */
static void
await_canceller(void)
{
	if (is_cancelling)
		pthread_join(canceller, NULL);
	is_cancelling = false;
}

static bool
gave_up(void)
{
	int32_t status = __atomic_load_n(&numbers[VARIABLE_JOB_STATUS], __ATOMIC_SEQ_CST);

	return (status == 'A' || status == 'f');
}

static enum rc
event(uint32_t type, void *value)
{
	struct bacula_event packet = {.type = type};

	return (plugin->handle_event(&context, &packet, value));
}

/* Backup. */

static int
io(struct io_packet *packet, int32_t function, char *buffer, int32_t count)
{
	/* As the daemon's, on the stack: nothing is cleared. */
	memset(packet, 0x7A, sizeof(*packet));
	packet->pkt_size = packet->pkt_end = (int32_t)sizeof(*packet) + (spoiled == 'i');
	packet->func = function;
	packet->buf = buffer;
	packet->count = count;
	packet->status = -1;
	plugin->plugin_io(&context, packet);
	if (packet->status < 0)
		say("io-error\t%d\t%d\n", (int)function, (int)packet->io_errno);
	return (packet->status);
}

static FILE *
open_output(const char *kind)
{
	char path[4096];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s-%d", out_directory, kind, file_number);
	if ((file = fopen(path, "wb")) == NULL)
		exit(3);
	return (file);
}

static void
read_file(const char *name)
{
	char *buffer = malloc((size_t)read_size);
	FILE *output = open_output("data");
	struct io_packet packet;
	int reads = 0;
	int count;

	(void)name;
	reach("open");
	if (io(&packet, IO_OPEN, NULL, 0) < 0)
		goto done;
	for (;;) {
		if (gave_up() || reads == stop_reading_after)
			break;
		reach("read");
		if ((count = io(&packet, IO_READ, buffer, read_size)) <= 0)
			break;
		reads++;
		fwrite(buffer, 1, (size_t)count, output);
	}
	reach("close");
	io(&packet, IO_CLOSE, NULL, 0);

done:
	fclose(output);
	free(buffer);
}

static void
save(char *command, bool is_estimate)
{
	struct xacl_packet xacl = {.pkt_size = sizeof(xacl), .func = XACL_XATTR_BACKUP, .count = 7, .pkt_end = sizeof(xacl)};
	enum rc rc;

	reach("command");
	rc = event(is_estimate ? EVENT_ESTIMATE_COMMAND : EVENT_BACKUP_COMMAND, command);
	say("command\t%d\n", (int)rc);
	if (rc != RC_OK)
		return;
	for (;;) {
		struct save_packet packet = {.pkt_size = (int32_t)sizeof(packet), .portable = true, .cmd = command,
		    .pkt_end = (int32_t)sizeof(packet) + (spoiled == 's')};
		struct stream_packet stream = {.pkt_size = sizeof(stream), .stream = 26, .pkt_end = sizeof(stream)};
		struct catalogued *known;
		bool is_object;

		reach("start");
		rc = plugin->start_backup_file(&context, &packet);
		if (rc != RC_OK) {
			say("end\t%d\n", (int)rc);
			return;
		}
		plugin->check_stream(&context, &stream);
		file_number++;
		is_object = packet.type == FILE_RESTORE_OBJECT || packet.type == FILE_PLUGIN_CONFIG ||
		    packet.type == FILE_PLUGIN_OBJECT;
		printf("file\t%d\t%d", file_number, (int)packet.type);
		say_text(packet.fname);
		say_text(packet.link);
		say("\t%lld\t%u\t%u\t%o\t%lld\t%d\t%d\n", (long long)packet.statp.st_size, (unsigned)packet.statp.st_uid,
		    (unsigned)packet.statp.st_gid, (unsigned)packet.statp.st_mode, (long long)packet.statp.st_mtime,
		    (int)packet.link_fi, (int)packet.no_read);
		if (packet.type == FILE_RESTORE_OBJECT || packet.type == FILE_PLUGIN_CONFIG) {
			FILE *output = open_output("data");

			fwrite(packet.restore_object.content, 1, (size_t)packet.restore_object.length, output);
			fclose(output);
			printf("object");
			say_text(packet.restore_object.name);
			say("\t%d\n", (int)packet.restore_object.length);
		} else if (packet.type == FILE_PLUGIN_OBJECT) {
			printf("plugin-object");
			say_text(packet.plugin_object.path);
			say_text(packet.plugin_object.category);
			say_text(packet.plugin_object.type);
			say_text(packet.plugin_object.name);
			say_text(packet.plugin_object.source);
			say_text(packet.plugin_object.uuid);
			say("\t%llu\t%c\t%u\n", (unsigned long long)packet.plugin_object.size, (int)packet.plugin_object.status,
			    (unsigned)packet.plugin_object.count);
		}
		if (!is_object && !packet.no_read && !is_estimate)
			read_file(packet.fname);
		for (int i = 0; !is_estimate && !is_object && xacl.count != 0; i++) {
			plugin->handle_xacl(&context, &xacl);
			if (i > 10)
				say("called\thandleXACLdata for ever\n");
		}
		xacl.count = 7;
		numbers[VARIABLE_FILE_INDEX]++;
		reach("end");
		rc = plugin->end_backup_file(&context);
		if ((known = find(packet.fname)) != NULL)
			known->is_seen = true;
		say("saved\t%d\n", (int)rc);
		if (rc != RC_MORE)
			return;
	}
}

static void
end_backup(void)
{
	for (size_t i = 0; has_catalogue && !gave_up() && i < catalogue_count; i++) {
		if (catalogue[i].is_seen)
			continue;
		printf("unseen");
		say_text(catalogue[i].name);
		say("\t%d\n", (int)plugin->check_file(&context, catalogue[i].name));
	}
	event(EVENT_END_BACKUP_JOB, NULL);
	if (!gave_up())
		event(EVENT_JOB_END, NULL);
	await_canceller();
	say("backup-ended\t%c\n", (int)numbers[VARIABLE_JOB_STATUS]);
}

/* Restore. */

static void
write_file(FILE *input, long long give_up_after)
{
	char buffer[65536];
	struct io_packet packet;
	long long done = 0;
	size_t count;

	if (io(&packet, IO_OPEN, NULL, 0) < 0)
		return;
	while (input != NULL && (count = fread(buffer, 1, sizeof(buffer), input)) > 0) {
		if (gave_up() || (give_up_after >= 0 && done >= give_up_after))
			goto broken;
		reach("write");
		if (io(&packet, IO_WRITE, buffer, (int32_t)count) != (int)count)
			goto broken;
		done += (long long)count;
	}
	if (give_up_after < 0) {
		struct restore_packet attributes = {.pkt_size = sizeof(attributes), .pkt_end = sizeof(attributes),
		    .create_status = CREATE_EXTRACT};

		plugin->set_file_attributes(&context, &attributes);
		say("attributes\t%d\n", attributes.create_status);
	}

broken:
	reach("close");
	io(&packet, IO_CLOSE, NULL, 0);
}

/* command, type, stream, name, link, size, path of the content or -, bytes to give up after or -1 */
static void
restore_file(char **words)
{
	struct restore_packet packet = {.pkt_size = (int32_t)sizeof(packet),
	    .pkt_end = (int32_t)sizeof(packet) + (spoiled == 'r'), .stream = atoi(words[3]), .type = atoi(words[2]),
	    .ofname = words[4], .olname = words[5], .where = "", .replace = 'a', .create_status = CREATE_ERROR};
	FILE *input = strcmp(words[7], "-") == 0 ? NULL : fopen(words[7], "rb");
	enum rc rc;

	packet.statp.st_size = (off_t)atoll(words[6]);
	packet.statp.st_mode = packet.type == FILE_DIRECTORY ? 040700 : packet.type == FILE_SYMLINK ? 0120777 : 0100600;
	packet.statp.st_nlink = 1;
	packet.statp.st_mtime = 1700000000;
	if (gave_up())
		goto done;
	reach("restore-command");
	rc = event(EVENT_RESTORE_COMMAND, words[1]);
	if (rc != RC_OK || plugin->start_restore_file(&context, words[1]) != RC_OK) {
		say("native\t%s\n", words[4]);
		goto done;
	}
	reach("create");
	rc = plugin->create_file(&context, &packet);
	say("created\t%d\t%d\n", (int)rc, packet.create_status);
	if (rc == RC_OK && packet.create_status == CREATE_EXTRACT)
		write_file(input, atoll(words[8]));
	plugin->end_restore_file(&context);

done:
	if (input != NULL)
		fclose(input);
}

static void
give_object(char **words)
{
	struct restore_object_packet packet = {.pkt_size = sizeof(packet), .pkt_end = sizeof(packet),
	    .object_type = atoi(words[1]), .object_name = words[2], .job_id = (uint32_t)atoi(words[3]),
	    .plugin_name = words[4]};
	static char content[1 << 20];
	FILE *input = fopen(words[5], "rb");

	packet.object = content;
	packet.object_len = (int32_t)fread(content, 1, sizeof(content), input);
	fclose(input);
	event(EVENT_RESTORE_OBJECT, &packet);
}

static void
give_expected(char **words)
{
	struct restore_list_packet packet = {.pkt_size = sizeof(packet), .pkt_end = sizeof(packet), .attr_ex = "",
	    .ofname = words[1], .checksum = ""};

	packet.statp.st_size = (off_t)atoll(words[2]);
	packet.statp.st_mtime = 1700000000;
	plugin->restore_file_list(&context, &packet);
}

static void
query(char *parameter, char *command)
{
	enum rc rc;

	do {
		struct query_packet packet = {.pkt_size = sizeof(packet), .parameter = parameter, .command = command,
		    .pkt_end = sizeof(packet)};

		reach("query");
		rc = plugin->query_parameter(&context, &packet);
		printf("answer\t%d\t%s", (int)rc, packet.result == NULL ? "NULL" : "text");
		say_text(packet.result);
		say("\n");
	} while (rc == RC_MORE);
}

/* Orders. */

static int
count_descriptors(void)
{
	int count = 0;

	for (int descriptor = 0; descriptor < 256; descriptor++)
		count += fcntl(descriptor, F_GETFD) != -1;
	return (count);
}

static void
obey(char **words, int count)
{
	const char *order = words[0];
	const char *features = NULL;
	int variable = count > 1 ? atoi(words[1]) : 0;

	if (strcmp(order, "number") == 0) {
		is_number[variable] = true;
		numbers[variable] = atoi(words[2]);
	} else if (strcmp(order, "text") == 0) {
		free(texts[variable]);
		texts[variable] = strdup(words[2]);
	} else if (strcmp(order, "new") == 0)
		say("new\t%d\n", (int)plugin->new_plugin(&context));
	else if (strcmp(order, "free") == 0) {
		await_canceller();
		plugin->free_plugin(&context);
		say("freed\t%d\t%d\n", count_descriptors(), outstanding);
	} else if (strcmp(order, "event") == 0)
		event((uint32_t)variable, count > 2 ? words[2] : NULL);
	else if (strcmp(order, "value-event") == 0)
		event((uint32_t)variable, (void *)(intptr_t)atoll(words[2]));
	else if (strcmp(order, "features") == 0) {
		event(EVENT_FEATURES, &features);
		say("features\t%s\n", features != NULL ? features : "NULL");
	} else if (strcmp(order, "catalogue") == 0) {
		struct catalogued *file = &catalogue[catalogue_count++];

		has_catalogue = true;
		snprintf(file->name, sizeof(file->name), "%s", words[1]);
		file->statp.st_size = (off_t)atoll(words[2]);
		file->statp.st_mtime = (time_t)atoll(words[3]);
		file->statp.st_mode = 0100600;
	} else if (strcmp(order, "backup") == 0)
		save(words[1], false);
	else if (strcmp(order, "estimate") == 0)
		save(words[1], true);
	else if (strcmp(order, "end-backup") == 0)
		end_backup();
	else if (strcmp(order, "restore") == 0)
		restore_file(words);
	else if (strcmp(order, "object") == 0)
		give_object(words);
	else if (strcmp(order, "expected") == 0)
		give_expected(words);
	else if (strcmp(order, "expected-end") == 0)
		plugin->restore_file_list(&context, NULL);
	else if (strcmp(order, "end-restore") == 0) {
		event(EVENT_END_RESTORE_JOB, NULL);
		await_canceller();
		say("restore-ended\t%c\n", (int)numbers[VARIABLE_JOB_STATUS]);
	} else if (strcmp(order, "query") == 0)
		query(words[1], words[2]);
	else if (strcmp(order, "check-file") == 0)
		say("checked\t%d\n", (int)plugin->check_file(&context, words[1]));
	else if (strcmp(order, "cancel-at") == 0) {
		snprintf(cancel_point, sizeof(cancel_point), "%s", words[1]);
		cancel_countdown = atoi(words[2]);
		cancel_delay = atoi(words[3]);
		snprintf(cancel_file, sizeof(cancel_file), "%s", count > 4 ? words[4] : "");
	} else if (strcmp(order, "cancel") == 0) {
		event(EVENT_CANCEL, NULL);
		set_cancelled();
	} else if (strcmp(order, "read-size") == 0)
		read_size = atoi(words[1]);
	else if (strcmp(order, "stop-reading") == 0)
		stop_reading_after = atoi(words[1]);
	else if (strcmp(order, "spoil") == 0)
		spoiled = words[1][0];
	else
		say("unknown order\t%s\n", order);
}

/* Undo %xx in place. */
static void
decode(char *word)
{
	char *to = word;
	unsigned byte;

	for (; *word != '\0'; word++) {
		if (*word == '%' && sscanf(word + 1, "%2x", &byte) == 1) {
			*to++ = (char)byte;
			word += 2;
		} else
			*to++ = *word;
	}
	*to = '\0';
}

int
main(int argc, char **argv)
{
	typedef int load_function(const struct bacula_info *, const struct bacula_functions *, struct plugin_info **,
	    struct plugin_functions **);
	static char order[1 << 16];
	load_function *load;
	void *library;
	void *symbol;
	int rc;

	if (argc < 3 || (library = dlopen(argv[1], RTLD_NOW)) == NULL) {
		fprintf(stderr, "usage: daemon PLUGIN OUTPUT-DIRECTORY [INTERFACE-VERSION]: %s\n", argc < 3 ? "" : dlerror());
		return (2);
	}
	out_directory = argv[2];
	if (argc > 3)
		daemon_information.version = functions.version = (uint32_t)atoi(argv[3]);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	is_number[VARIABLE_JOB_STATUS] = is_number[VARIABLE_IS_CANCELED] = is_number[VARIABLE_FILE_INDEX] = true;
	numbers[VARIABLE_JOB_STATUS] = 'R';
	symbol = dlsym(library, "loadPlugin");
	memcpy(&load, &symbol, sizeof(load));
	rc = load(&daemon_information, &functions, &information, &plugin);
	say("loaded\t%d\t%d\n", rc, count_descriptors());
	if (rc != 0)
		return (0);
	say("information\t%u\t%u\t%s\t%s\t%s\n", information->size, information->version, information->magic,
	    information->licence, information->plugin_version);
	while (fgets(order, sizeof(order), stdin) != NULL) {
		char *words[MOST_WORDS] = {NULL};
		char *rest = order;
		int count = 0;

		order[strcspn(order, "\n")] = '\0';
		while (count < MOST_WORDS - 1 && (words[count] = strsep(&rest, "\t")) != NULL)
			decode(words[count++]);
		obey(words, count);
		say("done\n");
	}
	for (int i = 0; i < VARIABLES; i++)
		free(texts[i]);
	dlclose(library);
	return (0);
}
