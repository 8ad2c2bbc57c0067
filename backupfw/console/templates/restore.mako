<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">Restore</%def>
<article class="narrow">
<h1>Restore this backup</h1>
<p><strong>${shown.named(backup.display_name, backup.id)}</strong> of ${shown.moment(backup.data_timestamp or backup.created_at)}, ${backup.size} GiB.</p>
<form method="post" action="${base}/volumes/${backup.volume_id}/${backup.id}/restore">
<fieldset>
<legend>Where to</legend>
<label><input type="radio" name="to" value="new" checked> a new volume</label>
<label>Its name
<input name="name" maxlength="255" placeholder="restore_backup_${backup.id}"></label>
<label><input type="radio" name="to" value="existing"> a volume that is there</label>
<label>Its id
<input name="volume_id" value="${backup.volume_id}" maxlength="36"></label>
<label><input type="checkbox" name="overwrite"> What is on that volume may be overwritten.</label>
</fieldset>
<button>Restore</button>
<a class="button quiet" href="${base}/volumes/${backup.volume_id}">Back</a>
</form>
${parts.same(f'POST /v3/{backup.project_id}/backups/{backup.id}/restore', '{"restore": {"volume_id": null, "name": null}}', f'backupfw backup restore {backup.id}')}
</article>
