<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">Delete</%def>
<article class="narrow">
<h1>Delete this backup?</h1>
<p><strong>${shown.named(backup.display_name, backup.id)}</strong> of ${shown.moment(backup.data_timestamp or backup.created_at)}, ${backup.size} GiB,
${shown.state(backup.status)}. Nothing brings it back; other backups do not need it. It frees: ${shown.freed(frees)}.</p>
<form method="post" action="${base}/volumes/${backup.volume_id}/${backup.id}/delete">
<button class="danger">Delete it</button>
<a class="button quiet" href="${base}/volumes/${backup.volume_id}">Keep it</a>
</form>
${parts.same(f'DELETE /v3/{backup.project_id}/backups/{backup.id}', None, f'backupfw backup delete {backup.id}')}
</article>
