<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">Cancel</%def>
<article class="narrow">
<h1>Cancel?</h1>
<p>The operation on the backup <strong>${shown.named(backup.display_name, backup.id)}</strong>, which is
${shown.state(backup.status)} now, ends. A backup that is being made ends with the status <em>error</em>; the target of a restore stays half written.</p>
<form method="post" action="${base}/now/${backup.id}/cancel">
<button class="danger">Cancel it</button>
<a class="button quiet" href="${base}/now">Let it go on</a>
</form>
${parts.same(f'POST /v3/{backup.project_id}/backups/{backup.id}/action', '{"os-backupfw-cancel": {}}', f'backupfw backup cancel {backup.id}')}
</article>
