#include "file_item.h"

#include <stdbool.h>
#include <string.h>

/* Take the number that text begins with, and the one blank behind it if there is one; -1 when there is none. */
static int
take_number(const char **text, uint64_t most, bool may_be_negative, int64_t *number)
{
	bool is_negative = may_be_negative && **text == '-';
	const char *digits = *text + (is_negative ? 1 : 0);
	size_t length = strspn(digits, "0123456789");
	uint64_t found;

	if (parse_number(digits, length, most, &found) != 0)
		return (-1);
	*number = is_negative ? -(int64_t)found : (int64_t)found;
	*text = digits + length;
	if (**text == ' ' && (*text)[1] != '\0')
		(*text)++;
	else if (**text != '\0')
		return (-1);
	return (0);
}

static int
take_octal(const char **text, mode_t *mode)
{
	size_t length = strspn(*text, "01234567");
	mode_t found = 0;

	if (length == 0 || length > 7 || (*text)[length] != ' ')
		return (-1);
	for (size_t i = 0; i < length; i++)
		found = found * 8 + (mode_t)((*text)[i] - '0');
	*mode = found;
	*text += length + 1;
	return (0);
}

static mode_t
kind_of(char type)
{
	return (type == 'D' ? S_IFDIR : type == 'S' ? S_IFLNK : S_IFREG);
}

int
file_item_parse_stat(struct file_item *item, const char *text)
{
	int64_t size;
	int64_t uid;
	int64_t gid;
	int64_t links;
	int64_t link_fi = 0;
	mode_t mode;

	if (text[0] == '\0' || strchr("FEDSL", text[0]) == NULL || text[1] != ' ')
		return (-1);
	item->type = text[0];
	text += 2;
	if (take_number(&text, INT64_MAX, true, &size) != 0 || size < -1 ||
	    take_number(&text, UINT32_MAX, false, &uid) != 0 || take_number(&text, UINT32_MAX, false, &gid) != 0 ||
	    take_octal(&text, &mode) != 0 || take_number(&text, UINT32_MAX, false, &links) != 0)
		return (-1);
	if (text[0] != '\0' && (take_number(&text, INT32_MAX, false, &link_fi) != 0 || text[0] != '\0'))
		return (-1);
	if ((mode & S_IFMT) != 0 && (mode & S_IFMT) != kind_of(item->type))
		return (-1);
	item->status.st_mode = (mode & ~(mode_t)S_IFMT) | kind_of(item->type);
	item->status.st_size = (off_t)size;
	item->status.st_uid = (uid_t)uid;
	item->status.st_gid = (gid_t)gid;
	item->status.st_nlink = (nlink_t)links;
	item->status.st_blksize = 4096;
	item->status.st_blocks = size > 0 ? (size - 1) / 512 + 1 : 0;
	item->link_fi = (int32_t)link_fi;
	return (0);
}

int
file_item_parse_times(struct file_item *item, const char *text)
{
	int64_t times[3];

	for (int i = 0; i < 3; i++)
		if (take_number(&text, INT64_MAX, true, &times[i]) != 0)
			return (-1);
	if (text[0] != '\0')
		return (-1);
	item->status.st_atime = times[0];
	item->status.st_mtime = times[1];
	item->status.st_ctime = times[2];
	return (0);
}

void
file_item_print_stat(struct text *text, const struct file_item *item)
{
	const struct stat *status = &item->status;

	text_print(text, "STAT:%c %lld %u %u %06o %u %d", item->type, (long long)status->st_size, (unsigned)status->st_uid,
	    (unsigned)status->st_gid, (unsigned)status->st_mode, (unsigned)status->st_nlink, (int)item->link_fi);
}

void
file_item_print_times(struct text *text, const struct file_item *item)
{
	const struct stat *status = &item->status;

	text_print(text, "TSTAMP:%lld %lld %lld", (long long)status->st_atime, (long long)status->st_mtime,
	    (long long)status->st_ctime);
}
